"""Passages beside a question, and as evidence: which ones, where they are, what is printed."""

import json
import sys

import pytest
from extras import needs
from papers import pdf

import liftcore
from liftcore import answer, document
from liftcore.cli import options
from liftcore.cli.main import main
from liftcore.errors import LiftError
from liftcore.questions.retrieval import GAP, MOST, SentenceIndex
from liftcore.terminal import Typewriter

FAST = ["--segment-length", "16", "--epochs", "1", "--rank", "4", "--device", "cpu"]
FILLER = "The wind blew over the sea and nobody wrote it down at all. "
FACTS = ("Marta Quellin keeps bees on the roof.", "Anton Breck repairs clocks by the river.")


def filled(*facts):
    return "".join(FILLER * 30 + fact + "\n\n" for fact in facts) + FILLER * 30


@pytest.fixture
def told(memory, monkeypatch):
    """A memory of a longer text than it was trained on."""
    monkeypatch.setattr(memory, "text", filled(*FACTS))
    monkeypatch.setattr(memory, "_index", None)
    return memory


@needs("bm25s")
def test_evidence_is_the_passage_and_its_place(told):
    for fact, question in zip(FACTS, ("Who keeps bees?", "Who repairs clocks?"), strict=True):
        passages = told.evidence(question, most=1)
        assert len(passages) == 1 and fact in passages[0].text
        (passage,) = passages
        assert passage.text == told.text[passage.start : passage.stop]
        line = told.text.count("\n", 0, told.text.index(fact)) + 1
        assert passage.place.startswith(f"line {line} of ") or f"lines {line} to" in passage.place


@needs("bm25s")
def test_passages_stand_in_the_prompt(told, monkeypatch):
    prompts = []
    monkeypatch.setattr(answer, "generate", lambda m, t, ids, *_: prompts.append(ids) or " Marta ")
    assert told.ask("Who keeps bees?", context="passages", max_new_tokens=4) == "Marta"
    prompt = told.tokenizer.decode(prompts[0])
    assert FACTS[0] in prompt and FACTS[1] not in prompt
    inside = told.text.replace("\n\n", GAP)
    assert prompt.count("wrote it down") <= 5 * MOST < inside.count("wrote it down")
    assert len(prompts[0]) + 4 <= 256, "the tiny model's window"
    told.ask("Who keeps bees?", max_new_tokens=4)
    assert "roof" not in told.tokenizer.decode(prompts[1])


def test_a_memory_without_its_document_has_no_evidence(told, monkeypatch):
    monkeypatch.setattr(told, "text", None)
    for ask in (told.evidence, lambda question: told.ask(question, context="passages")):
        with pytest.raises(LiftError, match="without its document"):
            ask("Who?")


def test_bm25s_that_is_missing_names_the_extra(told, monkeypatch):
    monkeypatch.setitem(sys.modules, "bm25s", None)
    with pytest.raises(LiftError, match=r"bm25s: pip install 'liftcore\[documents\]'"):
        told.evidence("Who?")


@needs("bm25s")
@pytest.mark.parametrize("text", ["", " \n", "1, 2. 3! " * 9, "A. B. C."])
def test_a_text_without_words_is_found_from_its_beginning(text):
    index = SentenceIndex(text)
    assert text.startswith(index.passages("Who?", 99, len, most=1))
    assert [e.start for e in index.evidence("Who?", 1, None)] == [0] * bool(text.strip())


@needs("bm25s")
def test_words_without_spaces_are_found():
    text = "海は静かだった。" * 30 + "マルタは屋根で蜂を飼う。" + "海は静かだった。" * 30
    index = SentenceIndex(text, 1, 1)
    assert index.passages("誰が蜂を飼うか", 99, len, most=1) == "マルタは屋根で蜂を飼う。"


@needs("bm25s", "pypdfium2")
def test_a_pdf_becomes_a_memory_that_knows_its_pages(tiny_folder, tmp_path, capsys):
    pages = [[FILLER.strip()] * 20, ["Marta keeps bees here.", *[FILLER.strip()] * 8]]
    file, out = tmp_path / "report.pdf", tmp_path / "memory"
    file.write_bytes(pdf(pages))
    words = ["absorb", str(file), "--model", str(tiny_folder), "--out", str(out), *FAST]
    assert main([*words, "--objective", "segments"]) == 0
    assert "report.pdf: PDF, 2 pages" in capsys.readouterr().err
    source = json.loads((out / "liftcore.json").read_text())["document"]["source"]
    loaded = liftcore.load_memory(out, device="cpu")
    assert loaded.source.sha256 == source["sha256"] and source["unit"] == "page"
    assert loaded.text == (out / "document.txt").read_text()
    assert (
        main(["ask", str(out), "--evidence", "--device", "cpu", "--json", "Who keeps bees?"]) == 0
    )
    printed = capsys.readouterr().out
    (asked,) = json.loads(printed.splitlines()[-1])["answers"]
    (told,) = [e for e in asked["evidence"] if "Marta keeps bees here." in e["text"]]
    assert told["place"].startswith(("page 2, line", "pages 1 to 2, line"))
    assert f"[{told['place']}]\n{told['text']}\n" in printed
    info = json.loads((out / "liftcore.json").read_text())
    info["document"]["source"]["starts"] = ["x"]
    (out / "liftcore.json").write_text(json.dumps(info))
    with pytest.raises(LiftError, match="damaged"):
        liftcore.load_memory(out, device="cpu")


def test_read_shows_what_would_be_learnt(tiny_folder, tmp_path, capsys, tokenizer):
    file = tmp_path / "a.txt"
    file.write_bytes("Zoë\r\nkeeps bees.".encode("utf-16"))
    assert main(["read", str(file), "--model", str(tiny_folder), "--json"]) == 0
    out, err = capsys.readouterr()
    length = len(document.read(file, tokenizer).tokens)
    assert out.startswith("Zoë\nkeeps bees.\n") and f"{length} tokens of" in err
    assert json.loads(out.splitlines()[-1])["tokens"] == length
    assert main(["read", str(file), "--model", str(tiny_folder), "--tokens"]) == 0
    pieces = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert "".join(pieces) == "Zoë\nkeeps bees." and len(pieces) == length


@needs("bm25s")
def test_what_is_piped_is_called_standard_input(tiny_folder, tmp_path, monkeypatch, capsys):
    file = tmp_path / "pipe"
    monkeypatch.setattr(options, "STDIN", file)
    file.write_bytes(b"<html><body><p>Marta keeps bees.</p></body></html>")
    assert main(["read", "-", "--model", str(tiny_folder)]) == 0
    assert "liftcore: standard input: HTML" in capsys.readouterr().err
    file.write_bytes(bytes(64))
    assert main(["read", "-", "--model", str(tiny_folder)]) == 1
    file.unlink()
    assert main(["read", "-", "--model", str(tiny_folder)]) == 1
    said = capsys.readouterr().err.splitlines()
    assert [line.split(": ", 2)[2][:15] for line in said] == ["standard input ", "no such file: s"]
    assert str(file) not in "".join(said)


def test_an_answer_is_typed_on_a_terminal_alone(memory_folder, monkeypatch, capsys):
    from liftcore.memory import Memory

    typed = []

    def ask(self, question, *, on_text=None, **_):
        typed.append(on_text)
        for piece in (" Marta", " \x1b[3", "1mQuellin\x1b", "[0m.\n"):
            if on_text is not None:
                on_text(piece)
        return "Marta \x1b[31mQuellin\x1b[0m."

    monkeypatch.setattr(Memory, "ask", ask)
    words = ["ask", str(memory_folder), "--device", "cpu", "Who?"]
    assert main(words) == 0 and typed == [None]
    assert capsys.readouterr().out == "Marta Quellin.\n"
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True, raising=False)
    assert main(words) == 0 and isinstance(typed[1], Typewriter)
    assert capsys.readouterr().out.rstrip("\n") == "Marta Quellin."


def test_an_escape_sequence_in_pieces_is_taken_out(capsys):
    typewriter = Typewriter()
    for piece in ("  a\x1b", "[31", "mb", "\x1b]0;title\x07c", "\x1b", "x" * 40, "\x9b", "1md"):
        typewriter(piece)
    assert capsys.readouterr().out == "ab" + "c" + "x" * 39 + "d"
