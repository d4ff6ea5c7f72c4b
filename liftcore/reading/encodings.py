"""Text out of bytes: which encoding they are in, by a mark, by what they declare, or by guess."""

from __future__ import annotations

import codecs
import re

from liftcore.errors import LiftError
from liftcore.reading.text import (
    RETURNS,
    check_controls,
    check_no_archive,
    cleaned,
    counted,
    library,
    plain_text,
    removals,
)

# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ASCII = re.compile("[ -~]")
_SAMPLE = 2**16  # bytes or characters that show what a file is
# A text with a larger share of bytes that its encoding does not have is in another.
_MOST_BAD = 0.02
# Characters of UTF-8, the last bytes perhaps missing, and bytes that are hardly letters in any
# other encoding of Western text: many of these among few bad ones are UTF-8 that was damaged.
_UTF8 = re.compile(
    b"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{1,2}|[\xf0-\xf4][\x80-\xbf]{1,3}"
    b"|[\x81\x8d\x8f\x90\x9d\xfe\xff]"
)
# Where several encodings read the bytes alike, what people have is most likely one of these.
_USUAL = ("cp1252", "cp1251", "cp1250", "cp1254", "cp1253", "cp1255", "cp1256", "iso8859_2")
_ALIKE = 0.05  # of charset-normalizer's coherence
_JAPANESE_MAIL = re.compile(rb"\x1b\$[@B]")
# Pages declare the smaller one and have the characters of the larger, as browsers know.
_LARGER = {
    **{"iso8859-1": "cp1252", "iso8859-9": "cp1254", "iso8859-11": "cp874", "tis-620": "cp874"},
    **{"gb2312": "gb18030", "gbk": "gb18030", "big5": "big5hkscs"},
    **{"shift_jis": "cp932", "euc_kr": "cp949"},
}
_OF_PYTHON = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined")
_DECLARES_WITHIN = 4096  # bytes; browsers look at 1,024, but comments are long
_COMMENT = re.compile(rb"<!--.*?(?:-->|\Z)", re.S)
_DECLARED = (
    re.compile(rb"\A\s*<\?xml[^>]*?\bencoding\s*=\s*[\"']\s*([\w.:-]+)"),
    re.compile(rb"<meta\b[^>]*?\bcharset\s*=\s*[\"']?\s*([\w.:-]+)", re.I),
)
_LENIENT = "liftcore.lenient"


def decode(content: bytes, name: str) -> str:
    """The text of bytes: UTF-8, or UTF-16 or UTF-32 where a byte order mark says so; the mark is
    no part of it.

    Raises LiftError, which begins with `name`, for other encodings and for what is no text, such
    as a PDF or NUL bytes.
    """
    check_no_archive(content, name)
    encoding = _marked(content) or "utf-8"
    try:
        # JSON strings may hold U+2028 and the like as they are.
        return plain_text(content.decode(encoding), name, RETURNS)
    except UnicodeDecodeError as error:
        raise LiftError(
            f"{name} is not {_called(encoding)} text (byte {error.start}): convert it to UTF-8 "
            "first"
        ) from error


def detected(content: bytes, name: str, *, page: bool = False) -> tuple[str, list[str]]:
    """(text, what was done): as decode(), in any encoding that charset-normalizer knows.

    page   whether it is HTML or XML, which may declare its encoding; a mark counts more, and a
           declaration that the bytes contradict counts nothing

    UTF-16 and UTF-32 need no mark. In a text that is nearly one of UTF-8, UTF-16 or UTF-32, bytes
    that are none are replaced by U+FFFD and counted. Control characters are taken out, and halves
    of characters that a wrong program left behind become one character, or go. Raises LiftError
    for what is no text.
    """
    check_no_archive(content, name)
    text, notes = _decoded(content, name, page)
    text, removed = cleaned(text, name)
    return plain_text(text, name), notes + removals(removed)


def _decoded(content: bytes, name: str, page: bool) -> tuple[str, list[str]]:
    if marked := _marked(content):
        text, bad = _lenient(content, marked)
        if bad > min(_MOST_BAD * len(text) + 1, len(text) / 2):
            raise LiftError(f"{name} is not {_called(marked)} text ({counted(bad, 'bad byte')})")
        return text, _mended(marked, bad)
    for encoding in _declared(content) if page else ():
        try:
            text = content.decode(encoding)
            return text, [] if content.isascii() else _read_as(encoding)
        except UnicodeError:
            continue
    if wide := _wide(content):
        text, bad = _lenient(content, wide)
        return text, _mended(wide, bad)
    if _JAPANESE_MAIL.search(content):
        try:
            return content.decode("iso2022_jp_ext"), _read_as("iso2022_jp")
        except UnicodeDecodeError:
            pass
    text, bad = _lenient(content, "utf-8")
    good = len(_UTF8.findall(content)) if bad else 0
    if bad and (not good or bad > min(max(1, good // 2), len(text) / 2)):
        encoding = _guessed(content, name)
        return content.decode(encoding, "replace"), _read_as(encoding)
    return text, _mended("utf-8", bad)


def _marked(content: bytes) -> str | None:
    return next((e for mark, e in _MARKS.items() if content.startswith(mark)), None)


def _declared(content: bytes) -> list[str]:
    """The encodings that HTML or XML says it is in, by Python's names, the first one first."""
    head = _COMMENT.sub(b"", content[:_DECLARES_WITHIN])
    found = []
    for declaration in _DECLARED:
        if match := declaration.search(head):
            label = match[1].decode("ascii", "replace").lower().removeprefix("x-")
            try:
                b"a".decode(label)
            except (LookupError, UnicodeError):
                continue
            encoding = codecs.lookup(label).name
            # Who can read the declaration knows that it is no UTF-16.
            if not encoding.startswith(("utf-16", "utf-32")) and encoding not in _OF_PYTHON:
                found.append(_LARGER.get(encoding, encoding))
    return found


def _wide(content: bytes) -> str | None:
    """UTF-16 or UTF-32 without a mark: where every second byte, or three of four, is NUL."""
    sample = content[: min(len(content), _SAMPLE) // 4 * 4]
    if sample.count(0) * 4 < len(sample) or not sample:
        return None
    texts = {encoding: sample.decode(encoding, "replace") for encoding in _WIDE}
    whole = [
        encoding
        for encoding, text in texts.items()
        if len(re.findall("[\0\ufffd]", text)) <= _MOST_BAD * len(text)
    ]
    # Read in the wrong order, ASCII becomes other letters.
    return max(whole, key=lambda encoding: len(_ASCII.findall(texts[encoding])), default=None)


def _guessed(content: bytes, name: str) -> str:
    """The encoding that charset-normalizer takes the bytes for. Raises LiftError for none."""
    check_controls(content[:_SAMPLE].decode("latin-1"), name)
    what = f"{name} is not UTF-8 text"
    normalizer = library("charset_normalizer", f"{what}: another encoding")
    found = normalizer.from_bytes(content.replace(b"\0", b""))
    best = found.best()
    if best is None:
        raise LiftError(f"{what}, nor in another encoding: convert it to UTF-8 first")
    alike = {
        encoding
        for match in found
        if match.chaos <= best.chaos and match.coherence >= best.coherence - _ALIKE
        for encoding in match.could_be_from_charset
    }
    return next((encoding for encoding in _USUAL if encoding in alike), best.encoding)


def _lenient(content: bytes, encoding: str) -> tuple[str, int]:
    """(the text, how many bad bytes became U+FFFD); halves of characters stay."""
    try:
        return content.decode(encoding, "surrogatepass"), 0
    except UnicodeDecodeError:
        text = content.decode(encoding, _LENIENT)
        return text, len(text) - len(content.decode(encoding, f"{_LENIENT}.without"))


def _replaced(error: UnicodeError, by: str) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    try:
        return codecs.lookup_error("surrogatepass")(error)
    except UnicodeDecodeError as bad:
        return by, bad.end


def _read_as(encoding: str) -> list[str]:
    return [] if encoding == "utf-8" else [f"read as {encoding.replace('_', '-')}"]


def _mended(encoding: str, bad: int) -> list[str]:
    return [f"{counted(bad, 'byte')} replaced that {_called(encoding)} does not have"] * bool(bad)


def _called(encoding: str) -> str:
    return encoding.removesuffix("-sig").upper()


codecs.register_error(_LENIENT, lambda error: _replaced(error, "\ufffd"))
codecs.register_error(f"{_LENIENT}.without", lambda error: _replaced(error, ""))
