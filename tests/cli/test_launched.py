"""Under torchrun a document is trained by several processes, whatever becomes of one of them."""

import json
import multiprocessing
import os
import socket
import sys
from functools import partial

import pytest
import torch
from bees import TEXT
from killing import children, kill, wait_for
from safetensors.torch import load_file
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from liftcore import report
from liftcore.adapter import WEIGHTS
from liftcore.cli.main import main

ABSORB = ["absorb", "bees.txt", "--json", "--preset", "plain", "--dtype", "fp32", "--rank", "4"]
ABSORB += ["--segment-length", "16", "--eps", "1e-2", "--epochs", "20", "--model"]


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def verb(argv):
    sys.exit(main(argv))


def launched(argv, folder):
    """What torchrun does for two processes, which are forked so that nothing is imported again."""
    os.chdir(folder)
    os.environ["LIFTCORE_SAVE_SECONDS"] = "0"
    settings = LaunchConfig(
        **dict(min_nodes=1, max_nodes=1, nproc_per_node=2, max_restarts=2, monitor_interval=0.1),
        **dict(
            rdzv_backend="static",
            rdzv_endpoint=f"127.0.0.1:{free_port()}",
            rdzv_configs={"rank": 0},
        ),
        start_method="fork",
    )
    elastic_launch(settings, verb)(argv)
    os._exit(0)


def test_a_killed_process_is_started_again_and_nothing_is_lost(
    tiny_folder, tmp_path, capfd, monkeypatch
):
    # Reports take longer than the training here.
    monkeypatch.setattr(report, "measure", partial(report.measure, probes=2, new=4))
    (tmp_path / "bees.txt").write_text(TEXT)
    argv = [*ABSORB, str(tiny_folder), "--out"]
    agent = multiprocessing.get_context("fork").Process(
        target=launched, args=([*argv, "memory"], tmp_path)
    )
    agent.start()
    state = tmp_path / "memory" / "training_state.safetensors"
    try:
        wait_for(state.exists, agent)
        kill(children(agent.pid)[-1])
        agent.join(180)
        said, noted = capfd.readouterr()
    finally:
        for each in (*children(agent.pid), agent.pid):
            kill(each)
    assert agent.exitcode == 0, noted
    # One line says so, and only one.
    assert noted.count("liftcore: error: another process of this run has ended") == 1
    assert noted.count("the same command with --resume goes on from memory") == 1
    result = json.loads(said.splitlines()[-1])
    assert result["processes"] == 2 and said.count('"recall"') == 1
    assert not state.exists()
    here = os.getcwd()
    os.chdir(tmp_path)
    try:
        assert main([*argv, "alone"]) == 0
    finally:
        os.chdir(here)
    ours, theirs = (
        torch.cat([t.flatten() for _, t in sorted(load_file(tmp_path / name / WEIGHTS).items())])
        for name in ("memory", "alone")
    )
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()
    passes = [
        json.loads((tmp_path / name / "liftcore.json").read_text())["training"]["token_passes"]
        for name in ("memory", "alone")
    ]
    assert passes[0] == passes[1] == pytest.approx(20 * result["tokens"], rel=0.2)
