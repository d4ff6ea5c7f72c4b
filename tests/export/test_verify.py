"""Whether a memory has arrived: the verdicts, and each runtime that can be had here."""

import contextlib
import importlib.util
import json
import warnings

import pytest
import torch
import transformers
from extras import needs

import liftcore
from liftcore.cli.main import main
from liftcore.errors import LiftError, UsageError
from liftcore.export.llama_cpp import served
from liftcore.export.runtimes import opened
from liftcore.export.saved import read_saved
from liftcore.export.verify import _verdict, in_process, verify
from liftcore.layers.lora import without_adapter


def test_the_memory_itself_arrives(learnt):
    memory, _ = learnt
    arrival = verify(memory, in_process(memory.model, memory.tokenizer), probes=3)
    assert arrival.arrived and arrival.alike == 1 and arrival.difference is None
    assert arrival.recall_here == arrival.recall_there > 0.9 > arrival.recall_base
    assert arrival.probes == 3


def test_an_adapter_that_changes_nothing_is_named(learnt):
    memory, _ = learnt

    def deaf(prompts, new):
        with without_adapter(memory.model):
            return in_process(memory.model, memory.tokenizer)(prompts, new)

    arrival = verify(memory, deaf, probes=3)
    assert arrival.verdict == "changes nothing" and not arrival.arrived
    assert arrival.recall_there == arrival.recall_base < arrival.recall_here
    assert "changes nothing" in arrival.text("vllm") and "vllm" in arrival.text("vllm")


def test_the_first_difference_is_shown(learnt):
    memory, _ = learnt
    asked = in_process(memory.model, memory.tokenizer)

    def wrong_from_the_fourth_word(prompts, new):
        right = asked(prompts, new)
        return [right[0], " ".join([*right[1].split()[:3], "goats"]), *right[2:]]

    arrival = verify(memory, wrong_from_the_fourth_word, probes=3)
    assert arrival.alike < 1 and arrival.difference.there.split()[0] == "goats"
    here = memory.tokenizer.decode(
        memory.tokenizer(memory.text)["input_ids"][arrival.difference.place :]
    )
    assert here.strip().startswith(arrival.difference.here.strip()[:8])


@pytest.mark.parametrize(
    ("figures", "verdict"),
    [
        ((0.9, 0.88, 0.02, 0.95, 0.05, 0.05), "arrived"),
        ((0.9, 0.02, 0.02, 0.05, 0.05, 0.99), "changes nothing"),
        ((0.9, 0.4, 0.02, 0.45, 0.05, 0.1), "in part"),
        ((0.02, 0.02, 0.02, 1.0, 1.0, 1.0), "cannot be told"),
        # It recalls little, and says the same.
        ((0.1, 0.09, 0.09, 0.95, 0.3, 0.3), "arrived"),
    ],
)
def test_verdicts(figures, verdict):
    assert _verdict(*figures) == verdict


def test_a_memory_without_its_document_cannot_be_asked(learnt, tmp_path):
    memory, _ = learnt
    folder = memory.save(tmp_path / "bare", with_document=False)
    bare = liftcore.load_memory(folder, (memory.model, memory.tokenizer))
    with pytest.raises(LiftError, match="without its document"):
        verify(bare, in_process(memory.model, memory.tokenizer))


def test_peft(learnt):
    pytest.importorskip("peft")
    memory, folder = learnt
    with opened("peft", memory, folder) as complete:
        assert verify(memory, complete, probes=3).arrived


@needs("xllamacpp")
def test_what_cannot_be_asked(learnt, tmp_path):
    memory, folder = learnt
    for runtime, error, words in (
        ("vllm", UsageError, "http://"),
        ("merged", LiftError, "export --merged"),
        ("gguf", UsageError, "--base"),
        ("http://127.0.0.1:9/v1", LiftError, "refused"),
    ):
        with pytest.raises(error, match=words), opened(runtime, memory, folder) as complete:
            verify(memory, complete)


@pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="needs xllamacpp")
def test_a_file_that_llama_cpp_cannot_read(tmp_path):
    (tmp_path / "broken.gguf").write_bytes(b"GGUF")
    with (
        pytest.raises(LiftError, match=r"llama\.cpp cannot load .*broken\.gguf"),
        served(tmp_path / "broken.gguf", None, context=64, threads=1),
    ):
        pass


@pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="needs mlx-lm")
def test_mlx(learnt):
    memory, folder = learnt
    with opened("mlx", memory, folder) as complete:
        arrival = verify(memory, complete, probes=3)
    assert arrival.arrived and arrival.recall_there > 0.9


def test_from_the_command_line(learnt, tmp_path, capsys):
    """Written, asked, and refused when it is another memory's."""
    _, folder = learnt
    out = tmp_path / "merged"
    assert main(["export", str(folder), "--merged", str(out)]) == 0
    capsys.readouterr()
    asked = ["verify", str(folder), "--runtime", "merged", "--device", "cpu", "--dtype", "fp32"]
    assert main([*asked, "--at", str(out), "--json"]) == 0
    said = capsys.readouterr().out
    assert "has arrived in merged" in said
    assert json.loads(said.splitlines()[-1])["recall_there"] > 0.9
    base = read_saved(folder).info.about.base_model
    assert main([*asked, "--at", base]) == 1
    assert "changes nothing" in capsys.readouterr().out
    assert torch.get_num_threads() == 1


def test_libraries_talk_of_nothing_that_users_can_see_to(learnt, monkeypatch):
    from liftcore.export import runtimes

    heard = []

    @contextlib.contextmanager
    def talkative(runtime, memory, folder, **options):
        heard.append(transformers.utils.logging.get_verbosity())
        warnings.warn("old name", FutureWarning, stacklevel=1)
        warnings.warn("look here", stacklevel=1)
        yield in_process(memory.model, memory.tokenizer)

    monkeypatch.setattr(runtimes, "opened", talkative)
    with pytest.warns(UserWarning, match="look here") as told:
        assert main(["verify", str(learnt[1]), "--device", "cpu", "--dtype", "fp32"]) == 0
    assert [str(each.message) for each in told] == ["look here"]
    assert heard == [transformers.utils.logging.ERROR]


def test_export_needs_to_know_where(learnt, capsys):
    assert main(["export", str(learnt[1])]) == 2
    assert "--gguf" in capsys.readouterr().err
