"""PDF: paragraphs of lines, running heads, parted words, and files that cannot be read."""

import base64
import builtins

import pytest
from extras import needs
from papers import pdf

from liftcore.errors import LiftError
from liftcore.reading import read_content
from liftcore.reading.lines import PARTED, Joiner, Line, without_heads

pytestmark = needs("pypdfium2")

# One page of "secret", with a password (RC4, by pypdf).
ENCRYPTED = """
JVBERi0xLjMKJeLjz9MKMSAwIG9iago8PAovVHlwZSAvQ2F0YWxvZwovUGFnZXMgMiAwIFIKPj4KZW5kb2JqCjIgMCBvYmoK
PDwKL1R5cGUgL1BhZ2VzCi9LaWRzIFsgMyAwIFIgXQovQ291bnQgMQo+PgplbmRvYmoKMyAwIG9iago8PAovVHlwZSAvUGFn
ZQovUGFyZW50IDIgMCBSCi9NZWRpYUJveCBbIDAgMCA2MTIgNzkyIF0KL1Jlc291cmNlcyA8PAovRm9udCA8PAovRjEgNCAw
IFIKPj4KPj4KL0NvbnRlbnRzIDUgMCBSCj4+CmVuZG9iago0IDAgb2JqCjw8Ci9UeXBlIC9Gb250Ci9TdWJ0eXBlIC9UeXBl
MQovQmFzZUZvbnQgL0hlbHZldGljYQo+PgplbmRvYmoKNSAwIG9iago8PAovTGVuZ3RoIDQ2Cj4+CnN0cmVhbQrMDtXU29E2
Ry51U21KJ2D3j+VTrb5VDP8wylJh2K4rtqlnlWAjEuArt8x+kwSyCmVuZHN0cmVhbQplbmRvYmoKNiAwIG9iago8PAovViAx
Ci9SIDIKL0xlbmd0aCA0MAovUCA0Mjk0OTY3MjkyCi9GaWx0ZXIgL1N0YW5kYXJkCi9PIDw3OThjZTFhZTdmODM0OTE1Y2Rl
ODU4NjMwYmYzYzUxMjZhZTg2NTBhZTM0NjE3ZmI5YmFkZDExNWJlMzEwNGZmPgovVSA8MDllOGRiOWY4ZjEyNWYyODg2M2E2
MTVmZjdlZGRmMzQ5MGM0OGM4NDQ3MGNjNjIwNWQ1NmExZTMzN2UwZDVkYz4KPj4KZW5kb2JqCnhyZWYKMCA3CjAwMDAwMDAw
MDAgNjU1MzUgZiAKMDAwMDAwMDAxNSAwMDAwMCBuIAowMDAwMDAwMDY0IDAwMDAwIG4gCjAwMDAwMDAxMjMgMDAwMDAgbiAK
MDAwMDAwMDI1MSAwMDAwMCBuIAowMDAwMDAwMzIxIDAwMDAwIG4gCjAwMDAwMDA0MTcgMDAwMDAgbiAKdHJhaWxlcgo8PAov
U2l6ZSA3Ci9Sb290IDEgMCBSCi9JRCBbIDwzMmUxMzkxMzYzODNhMDZhN2YwZGIxNTc0MjUyNGVhYT4gPDMyZTEzOTEzNjM4
M2EwNmE3ZjBkYjE1NzQyNTI0ZWFhPiBdCi9FbmNyeXB0IDYgMCBSCj4+CnN0YXJ0eHJlZgo2MzEKJSVFT0YK
"""


def line(text, bottom, left=72.0, right=540.0, size=10.0, fixed=False):
    return Line(text, left, right, bottom, size, fixed)


def joined(*pages):
    joiner = Joiner([[line(t, 700 - 12 * n) if isinstance(t, str) else t for n, t in enumerate(p)]
                     for p in pages])  # fmt: skip
    text = ""
    for before, each in joiner.texts():
        text += before * bool(text) + each
    return text, joiner.mended


def book(rng, pages=6):
    """Pages with a head of two kinds, a page number, and five lines of text."""
    first = int(rng.integers(1, 90))
    days = sorted(rng.permutation(range(100, 400))[:pages], reverse=True)
    made = []
    for n in range(pages):
        head = f"{first + n} The Harbour Book" if n % 2 else f"Chapter on Salt {first + n}"
        body = [
            f"On day {days[n]} the keeper saw {k} ships and wrote it down, as he did."
            for k in range(5)
        ]
        lines = [(72, 750, head), *((72, 700 - 14 * k, text) for k, text in enumerate(body))]
        made.append([*lines, (300, 30, f"- {first + n} -")])
    return made, first, days


def test_running_heads_and_page_numbers_go(rng):
    pages, first, days = book(rng)
    reading = read_content(pdf(pages), "a.pdf")
    for gone in ("Harbour Book", "Chapter on Salt", f"- {first} -"):
        assert gone not in reading.text
    for n in range(6):
        for k in range(5):
            assert f"day {days[n]} the keeper saw {k} ships" in reading.text
    assert "running heads and page numbers dropped: 12 lines" in reading.source.notes


def test_the_places_of_pages_are_known(rng):
    pages, _, days = book(rng)
    reading = read_content(pdf([*pages[:2], [], *pages[2:]]), "/tmp/a.pdf")
    source = reading.source
    assert source.name == "a.pdf" and source.unit == "page" and len(source.starts) == 7
    for n in range(6):
        at = reading.text.index(f"On day {days[n]} the keeper saw 3")
        assert source.place(at, at + 1) == f"page {n + 1 + (n > 1)}"
    assert source.place(0, source.starts[1]) == "page 1"
    assert source.place(0, source.starts[1] + 1) == "pages 1 to 2"


@pytest.mark.parametrize(
    "foot",
    [
        "Page {n} of 9",
        "Seite {n} von 9 – Stand: Mai",
        "http://x.org/a/b 2024 {n}/9",
        "{n} / 9",
        "- {n} -",
        "Harbour Book, p. {n}, first draft",
        "B.{n} Harbour",
        "page {roman}",
        "{ROMAN}",
        "– {roman} –",
        "pages {twice} to 40 of the scan",
        "{slide} / 9",
        "Salt and Rope  {slide} / 9",
    ],
)
def test_numbers_of_pages_in_all_forms(rng, foot):
    """Those of a text's own stay: years, days, and those of lists."""
    first = int(rng.integers(1, 5))
    years = sorted(rng.permutation(range(1700, 1900))[:5], reverse=True)
    roman = ["i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix"]
    pages = []
    for n in range(5):
        k = first + n
        said = foot.format(n=k, roman=roman[k - 1], ROMAN=roman[k - 1].upper(), twice=2 * k,
                           slide=1 + n // 2)  # fmt: skip
        head = line(f"In {years[n]} the harbour of the town was closed.", 750)
        body = [head, line("It was so.", 700 - 9 * n), line(f"{years[n]} ships", 60)]
        pages.append([*body, line(said, 30)])
    kept, dropped = without_heads(pages)
    assert dropped == 5 and kept == [page[:-1] for page in pages]


def test_a_foot_that_numbers_all_pages_needs_no_others():
    foots = ["Page 1 of 2", "2/2 of our letter"]
    pages = [[line(f"Text {n}", 700), line(foot, 30)] for n, foot in enumerate(foots)]
    kept, dropped = without_heads(pages)
    assert dropped == 2 and kept == [page[:-1] for page in pages]
    wrong = [[line("Text", 700), line("1 of 3", 30)], [line("More", 700), line("3/4 cup", 30)]]
    assert without_heads(wrong) == (wrong, 0)


def test_what_repeats_within_pages_or_counts_nothing_stays():
    pages = [[line("Yes.", 700 - 30 * n), line("It was so.", 650 - 30 * n), line(f"{year}", 20)]
             for n, year in enumerate((1887, 1920, 1921, 1954))]  # fmt: skip
    kept, dropped = without_heads(pages)
    assert dropped == 0 and kept == pages
    two = [[line("Head", 750), line("text", 700)] for _ in range(2)]
    assert without_heads(two) == (two, 0)


def test_lines_become_paragraphs():
    text, _ = joined(
        [
            "The keeper of the light wrote down the wind and",
            "went to bed.",
            line("In the morning he rose and saw that all the ships", 640.0),
            "had gone.",
        ]
    )
    assert text == (
        "The keeper of the light wrote down the wind and went to bed.\n\n"
        "In the morning he rose and saw that all the ships had gone."
    )
    code, _ = joined(
        [line("for ship in harbour:", 700, fixed=True), line("    load(ship)", 688, fixed=True)]
    )
    assert code == "for ship in harbour:\nload(ship)"
    items, _ = joined(
        ["He had with him in the boat these things and no others at", "• salt", "• rope"]
    )
    assert items.endswith("others at\n• salt\n• rope")
    heading, _ = joined([line("1. Salt", 700, size=16), line("It came by sea.", 686)])
    assert heading == "1. Salt\n\nIt came by sea."
    contents, _ = joined(["Salt . . . . . . . . . . 12"])
    assert contents == "Salt ... 12"


def test_a_parted_word_is_mended_and_a_compound_is_not():
    parted = [f"The light{PARTED}", "house was a well-known one, well", f"and widely well{PARTED}"]
    text, mended = joined([*parted, "known, they say"])
    assert "The lighthouse was" in text and "widely well-known, they" in text and mended == 1
    over, mended = joined([f"The har{PARTED}"], ["bour slept"])
    assert over == "The harbour slept" and mended == 1
    assert joined([f"Jean{PARTED}", "Luc came"])[0] == "Jean-Luc came"
    assert joined(["of the year and"], ["of the day"])[0] == "of the year and of the day"
    assert joined(["It was late."], ["of the day"])[0] == "It was late.\n\nof the day"


def test_a_list_of_contents_counts_no_pages():
    """Its sections do so by chance."""
    pages = [[line(f"{n + 1}.{n} Salt . . . . . . {20 + n}", 700), line("Text", 600 - 9 * n)]
             for n in range(4)]  # fmt: skip
    assert without_heads(pages) == (pages, 0)
    sections = [[line(f"{n + 1}.6 Ships", 700), line("Text", 600 - 9 * n)] for n in range(4)]
    assert without_heads(sections) == (sections, 0)


def test_a_raised_number_stands_before_its_note():
    note = [line("1", 113, left=93.4, right=97, size=6), line("In principle.", 107.5, left=97.5)]
    assert joined(["It was so."], note)[0].endswith("\n\n1 In principle.")
    below = [line("1", 113, size=6), line("In principle.", 80)]
    assert joined(["It was so."], below)[0].endswith("\n\n1\n\nIn principle.")


def test_ligatures_of_tex_without_their_names():
    """As PDFium gives them; control characters beside no letter are not taken for any."""
    made = pdf([["The o\x1ece was \x10\x1crst\x11 \x15 a re\x1dex, su\x1b and ba\x1fe"]])
    reading = read_content(made, "a.pdf")
    assert reading.text == "The office was “first” – a reflex, suff and baffle"
    assert reading.source.notes == ["1 page"]
    assert read_content(pdf([["1 \x1b 2 \x15 3"]]), "a.pdf").text == "1  2  3"


def test_hyphens_in_a_file_are_mended():
    reading = read_content(pdf([["The keeper of the light-", "house wrote it all down."]]), "a.pdf")
    assert reading.text == "The keeper of the lighthouse wrote it all down."
    assert "hyphens at line ends mended: 1" in reading.source.notes


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (pdf([[], []]), "2 pages and no text: .*OCR"),
        (base64.b64decode(ENCRYPTED), "is encrypted"),
        (b"%PDF-1.7\nplain enough\n", "a damaged PDF"),
        (pdf([["text"]])[:200], "a damaged PDF"),
        (b"no PDF at all", "a damaged PDF"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_one_line(content, says):
    with pytest.raises(LiftError, match=says) as refused:
        read_content(content, "a.pdf", ".pdf")
    assert "\n" not in str(refused.value) and str(refused.value).startswith("a.pdf ")


@pytest.mark.parametrize("missing", ["pypdfium2", "inscriptis", "mammoth", "lxml"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    from papers import docx, epub, paragraph

    real = builtins.__import__

    def without(name, *args):
        if name.partition(".")[0] == missing:
            raise ImportError(name)
        return real(name, *args)

    import importlib

    monkeypatch.setattr(importlib, "import_module", lambda name: without(name) and None)
    content = {
        "pypdfium2": pdf([["text"]]),
        "inscriptis": b"<html><p>text</p></html>",
        "mammoth": docx(paragraph("text")),
        "lxml": epub({"a.xhtml": "<p>text</p>"}),
    }[missing]
    with pytest.raises(LiftError, match=rf"package {missing}: pip install 'liftcore\[documents\]'"):
        read_content(content, "a.file")
