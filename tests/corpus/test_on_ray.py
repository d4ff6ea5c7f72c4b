"""The workers of a real Ray on this machine, one of which is killed in the middle of a document."""

import json
import os
import threading

import pytest
from killing import children, kill

from liftcore import LiftConfig
from liftcore.corpus.jobs import Plan
from liftcore.corpus.run import corpus as made_of

ray = pytest.importorskip("ray")
CONFIG = LiftConfig(segment_length=16, epochs=4, rank=4)


def below(pid):
    """All processes that come from this one."""
    mine = children(pid)
    return mine + [each for child in mine for each in below(child)]


def at_work(state):
    """The process that has a state file of its own half written, or wrote it last, is one of
    these: Ray's workers that are at a document."""
    names = {}
    for pid in below(os.getpid()):
        try:
            with open(f"/proc/{pid}/cmdline", "rb") as file:
                names[pid] = file.read().decode(errors="replace")
        except OSError:
            pass
    return [pid for pid, name in names.items() if name.startswith("ray::Worker.make")]


def test_a_killed_worker_of_ray_loses_nothing(tiny_folder, tmp_path, monkeypatch):
    # Ray's own workers give way to all others, which may be many here.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("LIFTCORE_SAVE_SECONDS", "0")
    documents, out = tmp_path / "documents", tmp_path / "memories"
    documents.mkdir()
    for n in range(3):
        text = f"The keeper of house {n} has {n + 3} bees. In June she gives the honey away. " * 4
        (documents / f"house {n}.txt").write_text(text)
    (documents / "empty.txt").write_text("")
    plan = Plan(str(tiny_folder), CONFIG, device="cpu", dtype="float32")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    killed, over = [], threading.Event()

    def hunter():
        while not over.wait(0.02):
            if list(out.glob("*/training_state.safetensors")) and (alive := at_work(out)):
                killed.append(alive[-1])
                kill(alive[-1])
                return

    hunt = threading.Thread(target=hunter)
    hunt.start()
    try:
        summary = made_of(documents, out, plan, ray="", cpus_per_worker=1, progress=False)
    finally:
        over.set()
        hunt.join()
        ray.shutdown()
    assert len(killed) == 1
    assert sorted(e["title"] for e in summary.made) == [f"house {n}" for n in range(3)]
    assert [f["title"] for f in summary.failed] == ["empty"]
    assert len([d for d in out.iterdir() if d.is_dir()]) == 3
    for entry in json.loads((out / "memories.json").read_text())["memories"]:
        info = json.loads((out / entry["folder"] / "liftcore.json").read_text())
        assert info["document"]["sha256"] == entry["sha256"]
        assert not (out / entry["folder"] / "training_state.safetensors").exists()
