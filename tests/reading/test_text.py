"""Text in every encoding, and characters that are none."""

import hashlib
import random

import pytest
from errors_and_seeds import fresh_seed

from liftcore.errors import LiftError
from liftcore.reading import read_content

GERMAN = "Marta Quellin hält Bienen auf dem Dach der Mühle. Für den Honig gibt es größere Töpfe.\n"
RUSSIAN = "Марта держит пчёл на крыше старой мельницы у реки. Мёд она продаёт на рынке.\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_characters_need_no_mark(encoding):
    for text in (GERMAN, "plain words"):
        assert read_content(text.encode(encoding), "a.txt").text == text


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (GERMAN, "cp1252"),
        (RUSSIAN, "cp1251"),
        (RUSSIAN * 4, "koi8-r"),
        ("日本の文章です。" * 9, "shift_jis"),
    ],
)
def test_other_encodings_are_detected(text, encoding):
    reading = read_content(text.encode(encoding), "a.txt")
    assert reading.text == text and "read as" in reading.source.notes[0]
    assert reading.source.sha256 == hashlib.sha256(text.encode(encoding)).hexdigest()


@pytest.mark.parametrize(
    ("content", "text", "note"),
    [
        (b"one\r\ntwo\rthree\x0cfour\xe2\x80\xa8five", "one\ntwo\nthree\nfour\nfive", ""),
        ("\ufeffMarta\n".encode(), "Marta\n", ""),
        (b"some text\0 and more", "some text and more", "1 control character"),
        (b"a\x1b[31mred\x07 and a tab\t" + b"words " * 60, "", "2 control characters"),
        ("\ud83d\udc1d bee \ud800.".encode("utf-8", "surrogatepass"), "🐝 bee .", "1 broken"),
    ],
)
def test_what_is_no_character_goes(content, text, note):
    reading = read_content(content, "a.txt")
    assert not text or reading.text == text
    assert not set(map(chr, [0, 7, 27])) & set(reading.text)
    assert ", ".join(reading.source.notes).startswith(note) and bool(reading.source.notes) == bool(
        note
    )


def test_random_bytes_are_no_text():
    content = random.Random(fresh_seed().initial_seed()).randbytes(4000)
    with pytest.raises(LiftError, match=r"^a\.txt is (a binary file|not)") as refused:
        read_content(content, "a.txt")
    assert "\n" not in str(refused.value)
