"""The examples for clusters, and the rules by which vLLM finds a memory in a folder of many."""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from tiny import tiny_model
from wheels import ROOT

from examples.serve import problems
from liftcore.cli.main import _parse
from liftcore.layers.lora import linear_layers

SKY, SLURM = ROOT / "examples/corpus.sky.yaml", ROOT / "examples/corpus.slurm"
# What a task of SkyPilot may say, and its resources.
TASK = {"name", "num_nodes", "workdir", "resources", "file_mounts", "envs", "setup", "run"}


def bash(text):
    return subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True)


def commands(text):
    """The arguments of each call of liftcore in a script."""
    return [
        shlex.split(line.strip())[1:]
        for line in text.splitlines()
        if line.strip().startswith("liftcore ")
    ]


def check(text):
    done = bash(text)
    assert done.returncode == 0, done.stderr
    (argv,) = commands(text)
    args = _parse(argv)
    assert args.run.__module__ == "liftcore.cli.corpus" and args.ray == "$HEAD:6390"


def test_the_example_for_skypilot_is_a_task():
    task = yaml.safe_load(SKY.read_text())
    assert set(task) <= TASK and task["num_nodes"] == 2
    assert set(task["resources"]) <= {"accelerators", "use_spot", "cloud", "region"}
    assert re.fullmatch(r"\w+:\d+", task["resources"]["accelerators"])
    assert all({"source", "mode"} >= set(mount) for mount in task["file_mounts"].values())
    assert bash(task["setup"]).returncode == 0
    check(task["run"])
    # It installs what there is.
    extras = re.search(r"'\.\[(.*)\]'", task["setup"])[1].split(",")
    known = (ROOT / "pyproject.toml").read_text()
    assert extras and all(re.search(rf"^{extra} = \[", known, re.M) for extra in extras)


def test_the_example_for_slurm_is_a_script():
    text = SLURM.read_text()
    assert text.startswith("#!/bin/bash\n")
    check(text)
    # Slurm reads its options up to the first command, and no later.
    head = text.split("\nset -eu")[0]
    options = re.findall(r"^#SBATCH (--[a-z-]+)(?:=\S+)?$", text, re.M)
    assert len(options) == text.count("#SBATCH ") == head.count("#SBATCH ") > 3
    assert bash("if").returncode != 0  # that is what a broken one gives


def resolved(cache, base, name):
    """The folder that vLLM's filesystem resolver takes for the model `name` of a request, by its
    rules (vllm/plugins/lora_resolvers/filesystem_resolver.py); None where it finds none."""
    place = cache / name
    config = place / "adapter_config.json"
    if not config.exists():
        return None
    settings = json.loads(config.read_text())
    fits = settings["peft_type"] == "LORA" and settings["base_model_name_or_path"] == base
    return place if fits else None


@pytest.fixture
def memories(saved_memory, tmp_path):
    (tmp_path / "memories").mkdir()
    (tmp_path / "memories/bees-0123456789ab").symlink_to(saved_memory)
    (tmp_path / "memories/memories.json").write_text('{"memories": []}')
    return tmp_path / "memories"


def test_vllm_finds_a_memory_by_the_name_of_its_folder(memories, tiny_folder, tokenizer):
    base = str(tiny_folder.resolve())
    place = resolved(memories, base, "bees-0123456789ab")
    assert place is not None
    model = tiny_model(vocab_size=len(tokenizer), pad_token_id=2)
    assert problems(place, linear_layers(model)) == []
    for name in ("bees", "memories.json"):
        assert resolved(memories, base, name) is None
    assert resolved(memories, "another/base", "bees-0123456789ab") is None
