"""The page of a memory: the probabilities, the pieces of text, the verdicts, what is escaped."""

import json
import math
import re
import shlex

import numpy as np
import pytest
import torch
from bees import PAIRS, TEXT
from page_of import NASTY

import liftcore
from liftcore.cli import again
from liftcore.cli.main import main
from liftcore.export import hub
from liftcore.export.saved import read_saved
from liftcore.info import read_info
from liftcore.page import words, write_page
from liftcore.page.asked import some, verdict
from liftcore.page.forced import NEW, forced
from liftcore.page.pictures import curve, level, means
from liftcore.page.pieces import pieces
from liftcore.page.words import Seen
from liftcore.presets import PRESETS
from liftcore.questions.pairs import Pair
from liftcore.reading import Source
from liftcore.report import PROMPT
from liftcore.tokens import text_ids


@pytest.mark.parametrize("prefix", [[], [1]])
def test_each_token_has_its_probability_behind_the_tokens_before_it(loaded, rng, prefix):
    model, _ = loaded
    tokens = rng.integers(0, 300, size=PROMPT + NEW + NEW + 37)
    read = forced(model, tokens, prefix=prefix)
    # The place, and the first token that is read before it.
    for at, start in (
        (5, 0),
        (PROMPT + NEW - 1, 0),
        (PROMPT + NEW, NEW),
        (len(tokens) - 1, 2 * NEW),
    ):
        ids = torch.tensor([[*prefix, *tokens[start:at]]])
        logits = model(ids).logits[0, -1].float().detach()
        assert read.nats[at] == pytest.approx(-logits.log_softmax(-1)[tokens[at]].item(), abs=1e-3)
        assert read.likeliest[at] == logits.argmax()
    assert np.isnan(read.nats).sum() == (not prefix)
    assert read.right == pytest.approx(np.mean((read.likeliest == tokens)[read.likeliest >= 0]))


def test_a_document_of_two_tokens_is_read(loaded):
    read = forced(loaded[0], np.array([5, 6]), prefix=[])
    assert np.isnan(read.nats[0]) and read.nats[1] > 0 and read.likeliest[0] == -1


def test_pieces_are_the_text_in_whole_characters(tokenizer, rng):
    alphabet = [*"ab .\n\t", "é", "中", "🦩", "🇳🇴", "\ufffd", "<|im_end|>", "  "]
    for _ in range(20):
        text = "".join(rng.choice(alphabet, size=40))
        ids = text_ids(tokenizer, text)
        made = pieces(tokenizer, ids)
        assert "".join(piece.text for piece in made) == tokenizer.decode(ids) == text
        assert [p.stop for p in made] == [p.start for p in made[1:]] + [len(ids)]
    (flamingo,) = pieces(tokenizer, text_ids(tokenizer, "🦩"))
    assert flamingo.text == "🦩" and flamingo.stop > 1


def test_verdicts():
    pair = Pair("Who keeps the bees?", "Marta Quellin")
    assert verdict("It is marta quellin, they say.", pair) == "right"
    assert verdict("Marta", pair) == "in part"
    assert verdict("Marta Quellinson", pair) == "in part"
    assert verdict("The mill keeps them", pair) == verdict("", pair) == "wrong"
    either = Pair("Which came first, the fire or the flood?", "the fire")
    assert verdict("The fire", either) == "right"
    assert verdict("The flood came before the fire", either) == "in part"


def test_some_questions_are_of_different_facts_along_the_document():
    pairs = [Pair(f"{n} {form}?", "x", group=f"g{n}") for n in range(40) for form in range(3)]
    chosen = some(pairs, 8)
    assert [pair.group for pair in chosen] == [f"g{n}" for n in range(0, 40, 5)]
    assert len({pair.question.split()[1] for pair in chosen}) == 3
    assert some(pairs[:1], 8) == pairs[:1] and some(pairs, 0) == some([], 8) == []


def test_means_and_levels(rng):
    values = rng.random(1000)
    values[:10] = np.nan
    bins = means(values, 100)
    assert math.isnan(bins[0]) and bins[1] == pytest.approx(values[10:20].mean())
    assert np.nanmean(bins) == pytest.approx(np.nanmean(values))
    assert [level(p) for p in (1, 0.9, 0.6, 0.2, 0.05, 1e-9)] == [0, 0, 1, 2, 3, 4]
    points = re.search('points="(.*?)"', curve([4.0, 2.0, 1.0], 3))[1].split()
    heights = [float(point.split(",")[1]) for point in points]
    assert len(points) == 3 and heights == sorted(heights)


def test_nothing_from_outside_is_markup(marked):
    memory, file = marked
    page = file.read_text("utf-8")
    assert NASTY in memory.text and NASTY in memory.title
    assert page.count("<script") == page.count("</script>") == 2
    assert "<b>" not in page and "</pre>.txt" not in page and "alert(1)</" not in page
    assert "onerror" in page and "<img" not in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//""", page)


def test_no_word_of_the_model_ends_the_script(loaded, monkeypatch):
    model, tokenizer = loaded
    ids = text_ids(tokenizer, TEXT)
    read = forced(model, np.array(ids), prefix=[])
    monkeypatch.setattr(words, "spelled", lambda tokenizer, token: "</script><b>")
    values = words.figures(tokenizer, Seen(pieces(tokenizer, ids), read, read))
    assert "<" not in values and "</script><b>" in json.loads(values)["names"]


def test_the_page_tells_what_it_measured(marked):
    memory, file = marked
    page = file.read_text("utf-8")
    values = json.loads(re.search(r'id="figures">(.*?)</script>', page)[1])
    ids = np.array(text_ids(memory.tokenizer, memory.text))
    read = forced(memory.model, ids, prefix=[])
    made = pieces(memory.tokenizer, ids.tolist())
    assert values["after"][5] == round(100 * float(read.nats[made[5].start : made[5].stop].sum()))
    assert values["after"] != values["before"] and len(values["after"]) == len(made)
    assert page.count("<i class=") + page.count("<i>") == len(made) + 5  # the legend
    assert len(memory.questions) == page.count("<li data-verdict=") == 2
    assert "in the text</a>" in page and 'class="curve"' in page


def test_questions_and_curve_are_kept_with_the_document_alone(marked, tmp_path):
    memory, _ = marked
    folder = memory.save(tmp_path / "kept")
    back = liftcore.load_memory(folder, (memory.model, memory.tokenizer))
    assert back.questions == memory.questions and len(back.questions) == 2
    assert back.training.curve == memory.training.curve
    assert len(memory.training.curve) == min(200, memory.training.steps)
    names = hub.stage(read_saved(folder), hub.Upload("me/bees", "org/tiny"), _new(tmp_path / "up"))
    assert "trained_questions.jsonl" not in names and "liftcore.json" in names
    upload = hub.Upload("me/bees", "org/tiny", document=True)
    names = hub.stage(read_saved(folder), upload, _new(tmp_path / "all"))
    assert {"trained_questions.jsonl", "document.txt"} <= {*names}
    bare = memory.save(tmp_path / "bare", with_document=False)
    assert not (bare / "trained_questions.jsonl").exists()
    back = liftcore.load_memory(bare, (memory.model, memory.tokenizer))
    page = write_page(back, tmp_path / "bare.html").read_text("utf-8")
    assert back.questions == [] and "without its document" in page and "<i" not in page
    (folder / "trained_questions.jsonl").write_text("[]\n")
    with pytest.raises(liftcore.LiftError, match=r"trained_questions\.jsonl is damaged"):
        liftcore.load_memory(folder, (memory.model, memory.tokenizer))


def _new(folder):
    folder.mkdir()
    return folder


def test_report_writes_the_page(memory_folder, tmp_path, capsys):
    file = tmp_path / "page.html"
    args = ["report", str(memory_folder), "--html", str(file), "--device", "cpu", "--dtype", "fp32"]
    assert main([*args, "--questions", "2"]) == 0
    out, err = capsys.readouterr()
    assert "recall" in out and str(file) in err
    command = re.search('id="command".*?>(.*?)</pre>', file.read_text())[1]
    assert command.startswith("liftcore absorb ") and "--rank 4" in command
    assert main([*args, "--questions", "-1"]) == 2
    assert main([*args[:3], str(tmp_path), *args[4:]]) == 1


@pytest.mark.parametrize("name", [*PRESETS, "odd"])
def test_the_command_makes_the_same_settings(name):
    from liftcore.cli import options
    from liftcore.cli.main import _parse

    if name == "odd":
        config = liftcore.LiftConfig.preset(
            *("understand",),
            **dict(layers=(-3, -1), train_a=True, objectives=("qa", "segments"), mix=(3, 1)),
            **dict(epochs=3, qa_first=True, qa_kinds=("quiz", "gap"), keep=0.5),
        )
    else:
        config = liftcore.LiftConfig.preset(name)
    words = again.flags(config)
    assert options.config(_parse(["absorb", "x.txt", *words])) == config
    if name in PRESETS:
        assert words == ["--preset", name]


def test_the_command_names_document_title_and_questions(memory_folder, tiny_folder):
    info = read_info(memory_folder)
    words = shlex.split(again.command(info, memory_folder, [Pair(*PAIRS[0])]))
    assert words[2] == str(memory_folder / "document.txt")
    assert words[words.index("--model") + 1] == str(tiny_folder)
    assert words[words.index("--qa") + 1] == str(memory_folder / "trained_questions.jsonl")
    assert "--init" not in words and TEXT not in words
    # Of a file's place the memory knows nothing, but it has the text.
    info.source = Source("report.pdf", "", "PDF")
    assert again.command(info, memory_folder, []).split()[2] == str(memory_folder / "document.txt")
    (memory_folder / "document.txt").unlink()
    assert again.command(info, memory_folder, []).split()[2] == "report.pdf"
