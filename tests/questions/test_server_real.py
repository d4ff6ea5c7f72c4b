"""A real server, `transformers serve`, on loopback: pairs from the embedded model, and a memory
that was merged into a model."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request

import pytest

from liftcore import embedded
from liftcore.export.runtimes import opened
from liftcore.export.verify import verify
from liftcore.questions import client as chat
from liftcore.questions.server import ServerPairs

NEEDED = ("fastapi", "uvicorn", "openai", "pydantic", "rich")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(missing), reason=f"transformers serve needs {missing}")

TEXT = "The mill at Orne was built by Paul Teller in 1822. It burnt down twice. Now it holds maps."


@pytest.fixture(scope="module")
def address(tmp_path_factory, tokenizer):
    """The address of a running server, which loads the model that a request names; `tokenizer` has
    put the embedded one into its folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve"]
    command += ["--port", str(port), "--host", "127.0.0.1"]
    command += ["--device", "cpu"]
    log = tmp_path_factory.mktemp("serve") / "log"
    own = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with log.open("w") as out:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=out, stderr=out)
    try:
        until = time.monotonic() + 120
        while not answers(f"http://127.0.0.1:{port}/health"):
            assert server.poll() is None and time.monotonic() < until, log.read_text()[-2000:]
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.terminate()
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def answers(url):
    try:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        return opener.open(url, timeout=2).status == 200
    except OSError:
        return False


def test_a_real_server_answers_for_every_window(address, tmp_path, monkeypatch):
    for name in chat.KEYS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LIFTCORE_QA_KEY", "not-needed")
    settings = {"concurrency": 3, "timeout": 120, "retries": 1, "backoff": 0.1}
    settings |= {"max_tokens": 72, "temperature": 0.1, "per_window": 1, "cache": tmp_path}
    model = str(embedded.model_folder())
    source = ServerPairs(TEXT, "The Mill", address, model, **settings)
    assert source.wait(240)
    pairs, found = source.poll(), source.summary()
    print(pairs, found)
    assert source.done and found["windows"] == 3 and not found["stopped"]
    assert found["requests"] >= 3 and found["answered"] + found["failed"] == 3
    # A model this small may miss the form, but every request was answered.
    assert set(source.failures) <= {"invalid JSON", "wrong schema"}
    made = len(pairs) + sum(source.rejected.values())
    assert made >= found["answered"] or found["answered"] == 0
    again = ServerPairs(TEXT, "The Mill", address, model, **{**settings, "retries": 0})
    assert again.wait(240) and again.summary()["cached"] == found["answered"]
    if found["answered"] == 3:
        assert again.poll() == pairs and again.summary()["requests"] == 0


def test_a_model_that_the_server_does_not_have(address):
    source = ServerPairs(TEXT, "The Mill", address, "no-such-model", retries=0, timeout=60)
    assert source.wait(120) and source.summary()["failed"] == 3 and source.poll() == []
    assert "no-such-model" in source.stopped or set(source.failures) <= {"HTTP 400", "HTTP 500"}


def test_a_merged_memory_answers_there(address, learnt, tmp_path):
    """What it says over HTTP is what it says here; the base model says something else."""
    memory, folder = learnt
    memory.write_merged(tmp_path / "merged")
    with opened(address, memory, folder, name=str(tmp_path / "merged")) as complete:
        arrival = verify(memory, complete, probes=4)
    assert arrival.arrived and arrival.recall_there > 0.9, arrival
    with opened(address, memory, folder, name=memory.model.config.name_or_path) as complete:
        assert verify(memory, complete, probes=4).verdict == "changes nothing"
