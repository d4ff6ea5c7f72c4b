"""The environment that other tools know, too: the hub's cache and its offline mode."""

import os
import subprocess
import sys
from pathlib import Path

SHA = "0123456789abcdef0123456789abcdef01234567"


def cached(home: Path, name: str, folder: Path):
    """Puts the files of a folder where the hub's library keeps those of a repository."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / SHA
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(SHA)
    for file in folder.iterdir():
        (snapshot / file.name).symlink_to(file)


def test_hf_home_and_offline_mode_hold_for_models_and_memories(tiny_folder, saved_memory, tmp_path):
    """No network is asked: any attempt ends the process."""
    home = tmp_path / "home"
    cached(home, "org/tiny", tiny_folder)
    cached(home, "me/bees", saved_memory)
    code = """if True:
        import socket, sys
        def refuse(*args, **options):
            raise SystemExit("asked the network")
        socket.socket.connect = socket.getaddrinfo = refuse
        import liftcore
        loaded = liftcore.load("org/tiny", device="cpu")
        memory = liftcore.load_memory("me/bees", loaded, force=True)
        print(memory.length)
        for load, name in ((liftcore.load, "org/none"), (liftcore.load_memory, "me/none")):
            try:
                load(name)
            except liftcore.LiftError as error:
                assert name in str(error) and len(str(error).splitlines()) == 1, error
                print("one line")
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**env, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[1:3] == ["one line", "one line"]
    assert not (home / "hub/models--org--none").exists()
