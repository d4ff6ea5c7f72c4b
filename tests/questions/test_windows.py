"""Sentences and windows of a document."""

import random

import pytest
from errors_and_seeds import fresh_seed

from liftcore.fiction.documents import fictional_document
from liftcore.questions.windows import LONGEST, blocks, every_sentence, sentences

TEXT = """The Harbour Book

Dr. Ann B. Quill came in 1701 with 3.5 tons of salt. “Who pays?” she asked. Nobody (it was late!)
answered… Then, at no. 7 and No. 9, e.g. Fish Row, lamps were lit!

* * *

After that the town slept"""


def cut(text):
    return [" ".join(text[a:b].split()) for a, b in sentences(text)]


def test_sentences_end_where_a_reader_ends_them():
    assert cut(TEXT) == [
        "The Harbour Book",
        "Dr. Ann B. Quill came in 1701 with 3.5 tons of salt.",
        "“Who pays?” she asked.",
        "Nobody (it was late!) answered…",
        "Then, at no. 7 and No. 9, e.g. Fish Row, lamps were lit! * * *",
        "After that the town slept",
    ]
    assert cut("He said No. Then 5 men left in Dec. The end.") == [
        "He said No.",
        "Then 5 men left in Dec.",
        "The end.",
    ]
    assert cut("他来了。她走了！“好。”完") == ["他来了。", "她走了！", "“好。”", "完"]
    assert sentences("") == sentences(" \n\n ") == sentences("* * *") == []


@pytest.mark.parametrize("kind", ["fiction", "noise"])
def test_sentences_hold_the_whole_text_in_order(kind):
    rng = random.Random(fresh_seed().initial_seed())
    text = fictional_document(rng.randrange(10**6), 600).text
    if kind == "noise":
        text = "".join(rng.choices("ab .!\n\t…A1。“)é_*" + "x" * 9, k=6000)) + "y" * 2500
    spans, at = sentences(text), 0
    for start, stop in spans:
        gap = text[at:start]
        assert gap.strip() == "" or not any(c.isalnum() for c in gap), gap
        assert start < stop and not text[start].isspace() and not text[stop - 1].isspace()
        assert any(c.isalnum() for c in text[start:stop])
        at = stop
    assert not any(c.isalnum() for c in text[at:])


def test_a_text_without_stops_is_cut_between_words():
    text = "word " * 900
    pieces = sentences(text)
    assert len(pieces) > 4 and all(b - a <= LONGEST for a, b in pieces)
    assert all(text[a:b].split() == ["word"] * len(text[a:b].split()) for a, b in pieces)
    assert [b - a for a, b in sentences("z" * 2500)] == [1000, 1000, 500]


def test_every_sentence_comes_with_the_text_before_it():
    text = fictional_document(3, 900).text
    windows = every_sentence(text, before=300)
    assert [w.number for w in windows] == list(range(len(windows)))
    assert [(w.start, w.stop) for w in windows] == sentences(text)
    starts = {a for a, _ in sentences(text)}
    for window in windows:
        assert text[window.start : window.stop] == window.sentence
        assert text[: window.stop].endswith(window.text) and window.text.endswith(window.sentence)
        before = len(window.text) - len(window.sentence)
        assert before <= 300 and window.stop - len(window.text) in starts
    assert windows[0].text == windows[0].sentence
    # All that is in reach is there: one sentence more would be too much.
    last = windows[-1]
    opens = last.stop - len(last.text)
    assert last.start - max(s for s in starts if s < opens) > 300


def test_the_end_of_a_long_sentence_is_still_shown():
    text = "Aaa " * 200 + "end. Then it rained."
    window = every_sentence(text, before=50)[1]
    assert window.sentence == "Then it rained."
    assert window.text.endswith("Aaa end. Then it rained.") and window.text.startswith("Aaa")
    assert len(window.text) <= 50 + len(window.sentence)


def test_blocks_of_sentences():
    text = " ".join(f"Sentence {n} ends." for n in range(7))
    read = [w.sentence.count("ends") for w in blocks(text, 3)]
    assert read == [3, 3, 3]
    found = [w.sentence[: len("Sentence 0")] for w in blocks(text, 3)]
    assert found == ["Sentence 0", "Sentence 3", "Sentence 4"]
    assert len(blocks(text, 3, step=1)) == 5
    assert blocks(text, 9)[0].sentence == text and len(blocks(text, 9)) == 1
    assert blocks("", 3) == []
    assert blocks(text, 3, before=20)[1].text.startswith("Sentence 2 ends. Sentence 3")
