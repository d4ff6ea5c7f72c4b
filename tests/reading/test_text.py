"""Text in every encoding, and characters that are none."""

import hashlib
import random

import pytest
from errors_and_seeds import fresh_seed
from extras import needs

from liftcore.errors import LiftError
from liftcore.reading import read_content

GERMAN = "Marta Quellin hält Bienen auf dem Dach der Mühle. Für den Honig gibt es größere Töpfe.\n"
RUSSIAN = "Марта держит пчёл на крыше старой мельницы у реки. Мёд она продаёт на рынке.\n"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_wide_characters_need_no_mark(encoding):
    for text in (GERMAN, "plain words"):
        assert read_content(text.encode(encoding), "a.txt").text == text


@needs("charset_normalizer")
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
        (b"a \x1b[1;31mred\x1b[0m\x07 tab\t" * 9, "a red tab\t" * 9, "18 terminal codes"),
        (b"\x1b]0;title\x07a page\x0cof \x1btext", "a page\nof text", "1 terminal code"),
        (b"N\bNA\bAM\bME\bE\n  _\bl_\bs", "NAME\n  ls", "6 overstruck letters"),
        (b"\x01\x02 one line \x03", " one line ", "3 control characters"),
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


SMALL = b"\x02\0\0\0\x05\0\0\0\x07\0\0\0\x10\0\0\0"


@pytest.mark.parametrize("content", [SMALL, SMALL * 99, b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + SMALL])
def test_a_small_binary_file_is_none(content):
    with pytest.raises(LiftError, match="binary"):
        read_content(content, "a.txt")


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("bad", [b"\xff", b"\x92s", b"\xc3", b"\xe2\x80"])
def test_a_bad_byte_in_utf_8_is_replaced(mark, bad):
    """Before, within and behind the text, which stays what it is."""
    good = f"{mark}{GERMAN}{RUSSIAN}".encode()
    at = len(f"{mark}{GERMAN}".encode())
    for content in (good + bad, good[:at] + bad + b" " + good[at:]):
        reading = read_content(content, "a.txt")
        assert GERMAN in reading.text and RUSSIAN.strip() in reading.text
        assert reading.text.count("\ufffd") == 1
        assert reading.source.notes == ["1 byte replaced that UTF-8 does not have"]
    plain = b"The keeper wrote down the wind.\xff"
    assert read_content(plain, "a.txt").text.endswith("the wind.\ufffd")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_halves_of_characters_and_odd_bytes(mark, encoding):
    text = f"{mark}{GERMAN}\udc1d{GERMAN}".encode(encoding, "surrogatepass")
    reading = read_content(text, "a.txt")
    assert reading.text == GERMAN * 2
    assert reading.source.notes == ["1 broken character taken out"]
    if encoding != "utf-8":
        odd = read_content(text + b"\n", "a.txt")
        assert odd.text == f"{GERMAN * 2}\ufffd" and odd.source.notes[0].startswith("1 byte")


def test_what_a_mark_promises_must_hold():
    for mark in (b"\xef\xbb\xbf", b"\xff\xfe\0\0"):
        with pytest.raises(LiftError, match=r"^a\.txt is not UTF-(8|32) text \(\d+ bad bytes\)"):
            read_content(mark + RUSSIAN.encode("cp1251") * 4, "a.txt")


@needs("charset_normalizer")
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Les élèves étaient à l'école où ils mangeaient des pâtes.\n" * 3, "cp1252"),
        ("The keeper’s light “was” out – he said.\n" * 3, "cp1252"),
        ("The keeper went to the café and ate.\n" * 3, "cp1252"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy.\n" * 5, "cp1250"),
        ("Η Μάρτα έχει μέλισσες στη στέγη του παλιού μύλου.\n" * 4, "cp1253"),
        ("日本の文章です。古い水車小屋の屋根で蜂を飼っています。\n", "iso2022_jp"),
        ("玛尔塔在老磨坊的屋顶上养蜜蜂。她在市场上卖蜂蜜。" * 4, "gbk"),
        ("日本の文章です。古い水車小屋の屋根で蜂を飼っています。" * 4, "euc-jp"),
    ],
)
def test_of_encodings_that_read_alike_the_usual_one(text, encoding):
    reading = read_content(text.encode(encoding), "a.txt")
    assert reading.text == text and "read as" in reading.source.notes[0]


def test_random_bytes_are_no_text():
    content = random.Random(fresh_seed().initial_seed()).randbytes(4000)
    with pytest.raises(LiftError, match=r"^a\.txt is (a binary file|not)") as refused:
        read_content(content, "a.txt")
    assert "\n" not in str(refused.value)
