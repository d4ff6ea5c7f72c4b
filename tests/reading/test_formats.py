"""HTML, EPUB, DOCX, PPTX, notebooks and tables as text."""

import io
import json

import pytest
from extras import needs
from papers import docx, epub, paragraph, zipped

from liftcore.errors import LiftError
from liftcore.reading import read_content, read_file

pytestmark = needs("inscriptis", "lxml", "mammoth")

PAGE = """<!DOCTYPE html><html><head><title>Salt</title><style>p {}</style></head><body>
<nav><a href="/">Home</a> <a href="/a">About</a></nav>
<div role="navigation"><a href="/n">next</a></div>
<h1>Salt<a class="headerlink" href="#salt">¶</a></h1>
<ul><li><a href="1">One</a></li><li><a href="2">Two</a></li><li><a href="3">Three</a></li></ul>
<p>It came &amp; went
by sea.</p><script>alert("no")</script>
<ul><li>rope, see <a href="x">x</a></li><li>tar</li></ul>
<table><tr><th>Ship</th><th>Year</th></tr><tr><td>Anna</td><td>1701</td></tr></table>
<p>Next: <a href="2" rel="next">Rope</a>, Up: <a href="0" rel="up">All</a></p>
<pre>for ship:
    load</pre><footer>Contact us</footer></body></html>"""


def test_a_page_without_its_navigation():
    reading = read_content(PAGE.encode(), "a.html", ".html")
    for gone in ("Home", "next", "alert", "Three", "¶", "Contact", "p {}", "Rope"):
        assert gone not in reading.text, gone
    for kept in ("Salt", "It came & went by sea.", "rope, see x", "tar", "for ship:\n    load"):
        assert kept in reading.text, kept
    row = next(line for line in reading.text.splitlines() if "Anna" in line)
    assert row.split() == ["Anna", "1701"]
    assert reading.source.notes == ["navigation dropped: 4 blocks"]
    # Without a name it is known by its beginning; with a declaration that contradicts it, too.
    assert read_content(PAGE.encode(), "-").text == reading.text
    declared = f'<?xml version="1.0" encoding="ascii"?>{PAGE}é'.encode()
    assert read_content(declared, "a.xhtml", ".xhtml").text.startswith("Salt")
    with pytest.raises(LiftError, match="no text"):
        read_content(b"<html><body><script>x</script></body></html>", "a.html", ".html")


SEARCH = '<form action="/s"><label>Find</label><input><button>Go</button></form>'
MENU = '<ul><li><a href="1">One</a></li><li><a href="2">Two</a></li></ul>'


@pytest.mark.parametrize(
    ("body", "text"),
    [
        # A form around everything, as ASP.NET makes it, and one for a question of many.
        (f"<form>{MENU}<p>Salt.</p><select><option>Peru</select></form>{SEARCH}", "Salt."),
        (f"<p>{'It was so. ' * 99}</p><form><h2>Salt</h2><p>Rope.</p><input></form>{SEARCH}",
         f"{'It was so. ' * 99}Salt Rope."),
        (f"<p>{'It was so. ' * 99}</p><form><p>{'Tar. ' * 150}</p></form>",
         f"{'It was so. ' * 99}{'Tar. ' * 150}"),
        # A head with links keeps the title and who wrote it.
        (f'<header><a href="/">Home</a><h1><a href="#">Salt</a></h1><div>By M.</div>{MENU}</header>'
         "<p>It came by sea.</p>", "Salt By M. It came by sea."),
        (f'<header><a href="/">Home</a>{MENU}</header><p>It came by sea.</p>', "It came by sea."),
        # Shown by a script that does not run.
        ("<div hidden><p>It came by sea.</p></div><p>Wait.</p>", "It came by sea. Wait."),
        ('<div aria-hidden="true"><p>It came by sea.</p></div><div hidden>x</div>',
         "It came by sea."),
        # What is short beside its menu, and all that there is.
        (f"<!-- {'x' * 500} --><nav><div><a href=1>{'To salt and rope. ' * 9}</a></div></nav>"
         "<p>Here it is, below the menu.</p>", "Here it is, below the menu."),
        ("<nav><p>It came by sea.</p></nav>", "It came by sea."),
        (f"<p>It came by</p>{MENU}<p>Read:</p>{MENU}<ul><li>or <b>see</b>: {MENU}</ul>",
         "It came by Read: * One * Two * or see: + One + Two"),
        ('<div class="navheader"><table><tr><td><a href="1">Prev</a></table></div>'
         '<h2><a href="#salt" class="anchor">§</a>Salt</h2><p>See <a href="#rope">rope</a>.</p>'
         '<div role="contentinfo">Made with a program.</div>', "Salt See rope."),
        (f"<p>It came by sea.</p><footer>{'All rights. ' * 5}</footer>", "It came by sea."),
    ],
)  # fmt: skip
def test_what_is_around_a_page_is_not_its_text(body, text):
    page = f"<!DOCTYPE html><html hidden><body>{body}</body></html>"
    assert read_content(page.encode(), "a.html").text.split() == text.split()


WORDS = "Привет, Марта"
META = '<meta charset="{}">'
HTTP = "<META http-equiv='Content-Type' content='text/html; charset={}'>"
XML = '<?xml version="1.0" encoding="{}"?>'


@pytest.mark.parametrize(
    ("declared", "label", "encoding"),
    [
        (META, "windows-1251", "cp1251"),
        (HTTP, "koi8-r", "koi8-r"),
        (XML, "iso-8859-5", "iso-8859-5"),
        (f"<!-- {META.format('cp437')} -->{META}", "x-mac-cyrillic", "mac-cyrillic"),
        (META, "utf-16", "utf-8"),
        (META, "us-ascii", "utf-8"),
        (META, "of no such name", "utf-8"),
        (META, "punycode", "utf-8"),
    ],
)
def test_a_page_says_its_encoding(declared, label, encoding):
    """So short a text could not be told from others. A mark counts more."""
    said = declared.format(label)
    page = f"<html><head>{said}</head><p>{WORDS}</p></html>"
    if declared == XML:
        page = f"{said}<html><p>{WORDS}</p></html>"
    for name, suffix in (("a.html", ".html"), ("-", "")):
        reading = read_content(page.encode(encoding), name, suffix)
        assert reading.text == WORDS and reading.source.kind == "HTML"
        assert ("read as" in str(reading.source.notes)) == (encoding != "utf-8")
        assert read_content(f"\ufeff{page}".encode(), name, suffix).text == WORDS
    # A text may be about such things.
    assert read_content(f"{META.format(label)}{WORDS}".encode(), "-").text.endswith(WORDS)


def test_a_page_may_be_larger_than_it_says():
    for text, label, larger in (("“So”", "iso-8859-1", "cp1252"), ("镕基", "gb2312", "gbk")):
        page = f"<html>{META.format(label)}<p>{text}</p></html>"
        reading = read_content(page.encode(larger), "a.html", ".html")
        assert reading.text == text and reading.source.notes[0].startswith("read as")
        ascii_alone = read_content(page.replace(text, "So").encode(), "a.html", ".html")
        assert ascii_alone.text == "So" and ascii_alone.source.notes == []


def test_chapters_say_their_encoding():
    page = f"{XML.format('windows-1251')}<html><body><p>{WORDS}</p></body></html>"
    bad = "<html><body><p>Größe für später </p></body></html>".encode()
    chapters = {"a.xhtml": page.encode("cp1251"), "b.xhtml": bad.replace(b"r ", b"r \xff", 1)}
    reading = read_content(epub(chapters), "a.epub")
    assert reading.text == f"{WORDS}\n\nGröße für \ufffdspäter"
    assert reading.source.notes == [
        "2 chapters",
        "read as cp1251 in 1 chapter",
        "1 byte replaced that UTF-8 does not have in 1 chapter",
    ]


def test_a_book_in_the_order_of_its_spine():
    chapters = {
        "z.xhtml": "<html><body><h1>One</h1><p>First words.</p></body></html>",
        "a%20b.xhtml": "",
        "a.xhtml": "<html><body><p>Last words.</p></body></html>",
    }
    book = epub(chapters, {"book/a b.xhtml": "<p>Words between.</p>"})
    reading = read_content(book, "a.epub")
    assert reading.text == "One\n\nFirst words.\n\nWords between.\n\nLast words."
    source = reading.source
    assert source.place(reading.text.index("between"), 30) == "chapter 2"
    assert source.place(0, 1) == "chapter 1" and source.kind == "EPUB"
    locked = "<encryption><x Algorithm='http://www.w3.org/2001/04/xmlenc#aes128-cbc'/></encryption>"
    with pytest.raises(LiftError, match="DRM"):
        read_content(epub(chapters, {"META-INF/encryption.xml": locked}), "a.epub")


def test_a_word_document():
    cells = "".join(f"<w:tc>{paragraph(t)}</w:tc>" for t in ("Anna", "1701"))
    body = (
        paragraph("Salt &amp; rope.") + f"<w:tbl><w:tr>{cells}</w:tr></w:tbl>" + paragraph("End.")
    )
    text = read_content(docx(body), "a.docx").text
    assert text.startswith("Salt & rope.\n") and text.endswith("End.") and "Anna" in text
    with pytest.raises(LiftError, match="no text"):
        read_content(docx(""), "a.docx")


def test_slides():
    pptx = pytest.importorskip("pptx")
    deck = pptx.Presentation()
    for n in range(2):
        slide = deck.slides.add_slide(deck.slide_layouts[1])
        slide.shapes.title.text = f"Title {n}"
        slide.placeholders[1].text = "One line\nAnother"
    slide.notes_slide.notes_text_frame.text = "Say this."
    table = slide.shapes.add_table(1, 2, 0, 0, 100, 100).table
    table.cell(0, 0).text, table.cell(0, 1).text = "Anna", "1701"
    out = io.BytesIO()
    deck.save(out)
    reading = read_content(out.getvalue(), "a.pptx")
    assert reading.text.startswith("Title 0\n\nOne line\nAnother\n\nTitle 1\n\n")
    assert "Anna; 1701" in reading.text and reading.text.endswith("Say this.")
    assert reading.source.place(reading.text.index("Title 1"), len(reading.text)) == "slide 2"


def test_a_notebook():
    cells = [
        {"cell_type": "markdown", "source": ["# Salt\n", "It came by sea."]},
        {
            "cell_type": "code",
            "source": "print(6 * 7)",
            "outputs": [{"text": ["42\n"]}, {"data": {"text/plain": "43", "image/png": "AAAA"}}],
        },
    ]
    text = read_content(json.dumps({"cells": cells}).encode(), "a.ipynb", ".ipynb").text
    assert text == "# Salt\nIt came by sea.\n\nprint(6 * 7)\n\n42\n\n43"
    for wrong in (b"{}", b"[1]", b"{", b'{"cells": [{}]}'):
        with pytest.raises(LiftError, match="no notebook"):
            read_content(wrong, "a.ipynb", ".ipynb")


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ("Ship,Year\nAnna,1701\n\nBerta,\n", "Ship: Anna; Year: 1701\nShip: Berta"),
        ('Ship;Said\nAnna;"salt; rope"\n', "Ship: Anna; Said: salt; rope"),
        ("1,2\n3,4\n", "1; 2\n3; 4"),
        ("0   0\n1   1\n", "0   0\n1   1"),
        ("a\tb\n1\t2\n", "a: 1; b: 2"),
    ],
)
def test_a_table(table, text):
    assert read_content(table.encode(), "a.csv", ".csv").text == text


@pytest.mark.parametrize(
    ("content", "suffix", "says"),
    [
        (zipped({"content.xml": "<x/>"}), ".odt", "ZIP archive"),
        (b"PK\x03\x04 and so on", ".docx", "damaged"),
        (zipped({"word/document.xml": "<x"}), ".docx", "damaged DOCX"),
        (zipped({"META-INF/container.xml": "<x/>"}), ".epub", "damaged EPUB"),
        (zipped({"ppt/presentation.xml": "<x/>"}), ".pptx", "damaged PPTX"),
        (b"\xd0\xcf\x11\xe0 and so on", ".docx", "encrypted, or of an old version"),
        (b"words", ".epub", "no EPUB file"),
        (zipped({"word/document.xml": " " * (257 * 2**20)}), ".docx", "MiB"),
    ],
)
def test_what_is_none_of_these_is_one_line(content, suffix, says):
    with pytest.raises(LiftError, match=says) as refused:
        read_content(content, f"a{suffix}", suffix)
    assert "\n" not in str(refused.value) and f"a{suffix}" in str(refused.value)


def test_a_file_is_what_it_holds(tmp_path):
    file = tmp_path / "a.txt"
    file.write_bytes(docx(paragraph("Salt.")))
    assert read_file(file).text == "Salt." and read_file(file).source.name == "a.txt"
