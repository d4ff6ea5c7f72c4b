"""What a document may be: a text, a path, bytes in some encoding."""

import codecs
import hashlib
import random

import pytest
from errors_and_seeds import fresh_seed

from liftcore import document
from liftcore.errors import LiftError
from liftcore.questions.pairs import Pair, read_pairs

TEXT = "Marta Quellin hält Bienen.\r\nこんにちは 🐝\n"


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_a_text_is_the_same_in_every_encoding(tmp_path, tokenizer, mark, encoding):
    file = tmp_path / "a.txt"
    file.write_bytes(mark + TEXT.encode(encoding))
    made = document.read(file, tokenizer)
    unified = TEXT.replace("\r\n", "\n")
    assert made.text == unified and made.sha256 == hashlib.sha256(unified.encode()).hexdigest()
    assert made.source.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
    file.write_bytes(mark + '{"question": "Who?", "answer": "Márta"}\n'.encode(encoding))
    assert read_pairs(file) == [Pair("Who?", "Márta")]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (codecs.BOM_UTF16_LE + b"a", "not UTF-16"),
        (codecs.BOM_UTF16_LE + "%PDF-1.4 x".encode("utf-16-le"), "a PDF"),
        (codecs.BOM_UTF8 + b"\n%PDF-1.7\nplain enough\n", "a PDF"),
        (b"{\\rtf1\\ansi Bees are kept here.}", "RTF"),
        (b"\x1f\x8b\x08 and so on", "gzip"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, tokenizer, content, says):
    file = tmp_path / "a.txt"
    file.write_bytes(content)
    with pytest.raises(LiftError, match=says) as error:
        document.read(file, tokenizer)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(LiftError, match=says):
        read_pairs(file)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (TEXT.encode("utf-16-le"), "not UTF-8|NUL"),
        (b"some text\0 and more", "NUL"),
        (b"%PDF-1.7\nplain enough\n", "a PDF"),
        (b"PK\x03\x04 and so on", "ZIP"),
        ("Zoë keeps bees".encode("latin-1"), "not UTF-8 text .byte 2"),
        ("\ud800 half".encode("utf-8", "surrogatepass"), "not UTF-8"),
    ],
)
def test_questions_are_utf_8(tmp_path, content, says):
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(LiftError, match=says) as error:
        read_pairs(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_a_byte_order_mark_is_no_part_of_a_text(tokenizer):
    assert document.read("\ufeff" + TEXT, tokenizer).text == TEXT.replace("\r\n", "\n")
    for wrong in ("Bees\0\n", "%PDF-1.7\nx", "{\\rtf1 x}\n"):
        with pytest.raises(LiftError):
            document.read(wrong, tokenizer)


PATHS = (
    "server.log", "report.pdf", "my report.txt", "notes/chapter1", "./notes", "../a b", "~/bees",
    "/var/log/some log", "C:\\Users\\me\\bees.txt", "data.json", "Мой отчёт.md", ".profile",
    "my files/bees", "archive.7z", "https://example.org/bees.txt", "server.log.1",
)  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_a_string_in_the_form_of_a_path_is_one(tmp_path, monkeypatch, tokenizer, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LiftError, match=r"no such file: .*line break"):
        document.read(path, tokenizer)
    assert document.read(path + "\n", tokenizer).text == path + "\n"


def test_a_file_that_is_there_is_read_whatever_its_name(tmp_path, monkeypatch, tokenizer):
    monkeypatch.chdir(tmp_path)
    name = random.Random(fresh_seed().initial_seed()).choice(["bees", "the bees of Orne.", "a/b c"])
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(TEXT, newline="")
    assert document.read(name, tokenizer).text == TEXT.replace("\r\n", "\n")


@pytest.mark.parametrize(
    "text",
    [
        "Marta keeps bees.",
        "Is it a quarter and/or 3/4?",
        "Bees and/or wasps live on the roof of the old mill of Orne",
        "The honey weighs 3.5",
        "bees and goats",
        "養蜂家は屋根の上にいる。",
        "word " * 2000 + "end.txt",
    ],
)
def test_a_sentence_is_a_text(tokenizer, text):
    assert document.read(text, tokenizer).text == text
