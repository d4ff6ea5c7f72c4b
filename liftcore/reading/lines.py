"""Lines of pages: running heads among them, and the paragraphs that they make."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

PARTED = "\u00ad"  # ends a line whose last word goes on in the next
_STOPS = re.compile(r"[.!?…:。！？][\"'”’»)\]]*$")
_ITEM = re.compile(r"(?:[•◦▪‣●○■–—*]|\(?\d{1,3}[.)]|\(?[a-z][.)]|\[\d+\]|\d+(?:\.\d+)+\.?)\s")
# The dots between a heading and its page number.
_LEADERS = re.compile(r"(?:\s?\.){4,}\s*")
# What may count the pages: whole, or within words that stay the same.
_NUMBER = re.compile(r"(?<!\d)(?<!\d\.)\d{1,5}(?!\.?\d)|(?<![^\W_])(?=[ivxlc])(?:xc|xl|l?x{0,3}|c)"
                     r"(?:ix|iv|v?i{0,3})(?![^\W_])", re.I)  # fmt: skip
_RAISED = re.compile(r"\d{1,3}|[*†‡]")  # before a note
_ROMAN = {"i": 1, "v": 5, "x": 10, "l": 50, "c": 100}
# "3 / 9", "3 of 9"
_OF_ALL = re.compile(r"(?<!\d)(\d{1,4})(\s?(?:/|of|von|de|sur|van|di|из)\s?)(\d{1,4})(?!\d)", re.I)
_WORD = re.compile(r"[^\W\d_]+(?:-[^\W\d_]+)*")
_END, _START = re.compile(r"[^\W\d_]+$"), re.compile(r"[^\W\d_]+")
_EDGE = 2  # lines at the top and at the bottom of a page that may be running heads
_SAME = 3.0  # points within which two lines stand equally high
_OFTEN = 3  # pages that make a line a running head


@dataclass
class Line:
    """A line of a page. Places are in points from the page's lower left corner."""

    text: str
    left: float
    right: float
    bottom: float
    size: float  # of the font
    fixed: bool  # whether all letters are of one width, as in code


def words(text: str) -> list[str]:
    """The words of a line, compounds with a hyphen whole; not the part of one at its end."""
    return _WORD.findall(re.sub(rf"[^\W\d_]+{PARTED}$", "", text))


def without_heads(pages: list[list[Line]]) -> tuple[list[list[Line]], int]:
    """(the pages without running heads, feet and page numbers, how many lines those were).

    One is a line among the outermost two of at least three pages, at the same height, with the
    same words, or with a number that counts with the pages: at its end, or within words that stay
    the same. "3 of 9" on the third of nine pages is one by itself.
    """
    where: dict[tuple, set[int]] = defaultdict(set)  # what lines share -> on which pages
    shared: dict[int, list[tuple]] = {}
    for number, page in enumerate(pages):
        for side, lines in _edges(page).items():
            for line in lines:
                # Two bands, so that a line near the edge of one is not alone.
                band = int(line.bottom // _SAME)
                marks = [(side, band + n, *m) for m in _marks(line.text, number) for n in (0, 1)]
                shared[id(line)] = marks
                for mark in marks:
                    where[mark].add(number)
    kept, dropped = [], 0
    for number, page in enumerate(pages):
        drop = set()
        for lines in _edges(page).values():
            # A line within is none unless those outside it are.
            for line in lines:
                often = any(len(where[mark]) >= _OFTEN for mark in shared[id(line)])
                if not (often or _numbers_all(line.text, number, len(pages))):
                    break
                drop.add(id(line))
        kept.append([line for line in page if id(line) not in drop])
        dropped += len(drop)
    return kept, dropped


def _edges(page: list[Line]) -> dict[str, list[Line]]:
    """The outermost lines of a page, from the edge inwards."""
    down = sorted(page, key=lambda line: -line.bottom)
    return {"top": down[:_EDGE], "bottom": down[: -_EDGE - 1 : -1]}


def _marks(text: str, page: int) -> list[tuple]:
    """What a running head would share with those of other pages."""
    # Of lists of contents some numbers count with the pages by chance.
    if not re.search(r"\w", text) or _LEADERS.search(text):
        return []
    marks: list[tuple] = [("words", text)]
    for number in _NUMBER.finditer(text):
        before, after = text[: number.start()], text[number.end() :]
        value = _value(number[0])
        # A book has a number a page, a scan of it two pages a sheet.
        marks += [("within", before, after, n, value - n * page) for n in (1, 2)]
        if not (re.search(r"\w", before) and re.search(r"\w", after)):
            marks.append(("counts", value - page))
        if not re.search(r"\w", before + after) and number[0].isalpha():
            marks.append(("roman",))
    # Slides that are shown bit by bit have the number of the last one again.
    marks += [("of", text[: of.start()], of[3], text[of.end() :])
              for of in _OF_ALL.finditer(text) if 0 < int(of[1]) <= int(of[3])]  # fmt: skip
    return marks


def _numbers_all(text: str, page: int, pages: int) -> bool:
    """Whether a line says "3 of 9" on the third of nine pages."""
    return any((int(of[1]), int(of[3])) == (page + 1, pages) for of in _OF_ALL.finditer(text))


def _value(number: str) -> int:
    """Of an Arabic or a Roman number."""
    if number.isdigit():
        return int(number)
    digits = [_ROMAN[letter] for letter in number.lower()]
    return sum(-a if a < b else a for a, b in pairwise([*digits, 0]))


class Joiner:
    """Makes paragraphs of lines.

    mended   how many words a line's end had parted
    """

    def __init__(self, pages: list[list[Line]]):
        """`pages` tell a parted word from a compound: by what stands elsewhere in them."""
        self.pages, self.mended = pages, 0
        said = (word for page in pages for line in page for word in words(line.text))
        self._count = Counter(word.casefold() for word in said)

    def texts(self) -> list[tuple[str, str]]:
        """(what stands before it, the text) of each page."""
        texts: list[tuple[str, str]] = []
        above: Line | None = None
        for page in self.pages:
            before, text = "", ""
            gap, margins = _gap(page), _margins(page)
            for number, line in enumerate(page):
                said = _LEADERS.sub(" ... ", line.text).strip()
                if above is None:
                    text = said
                elif text:
                    between = self._between(above, line, gap, margins[number - 1])
                    text = "".join(self._joined(text, between, said))
                else:
                    between = _over_the_edge(above, line)
                    last, before, text = self._joined(texts[-1][1], between, said)
                    texts[-1] = (texts[-1][0], last)
                above = line
            texts.append((before, text))
        return texts

    def _between(self, above: Line, line: Line, gap: float, margin: float) -> str:
        """What stands between two lines: a space within a paragraph, a line break in lists, code
        and tables, a blank line between paragraphs; PARTED where a word goes on."""
        if above.text.endswith(PARTED):
            return PARTED
        down = above.bottom - line.bottom
        raised = 0 < down < 0.7 * line.size and above.size < line.size
        if raised and _RAISED.fullmatch(above.text.strip()) and line.left > above.right - 1:
            return " "
        if down < -_SAME:  # the next column, or a note
            return " " if line.text[:1].islower() and not _STOPS.search(above.text) else "\n\n"
        larger = abs(above.size - line.size) > 0.08 * max(above.size, line.size)
        if down > 1.4 * gap or (larger and down > _SAME):
            return "\n\n"
        if down <= _SAME:
            return " "
        if (above.fixed and line.fixed) or _ITEM.match(line.text):
            return "\n"
        short = above.right < margin - 0.12 * max(1.0, margin - above.left)
        stops = bool(_STOPS.search(above.text))
        indented = line.left - above.left
        if stops and (short or 0.7 * line.size < indented < 6 * line.size):
            return "\n\n"
        return "\n" if short and not line.text[:1].islower() else " "

    def _joined(self, text: str, between: str, said: str) -> tuple[str, str, str]:
        """The two texts and what stands between them: nothing in a parted word, but a compound
        keeps its hyphen."""
        if between != PARTED:
            return text, between, said
        text = text.removesuffix(PARTED)
        end, start = _END.search(text), _START.match(said)
        if not end or not start or not start[0][0].islower():
            return text, "-", said
        whole, compound = (f"{end[0]}{hyphen}{start[0]}".casefold() for hyphen in ("", "-"))
        if self._count[compound] > self._count[whole]:
            return text, "-", said
        self.mended += 1
        return text, "", said


def _over_the_edge(above: Line, line: Line) -> str:
    """What stands between the pages: a paragraph goes on where its sentence does."""
    if above.text.endswith(PARTED):
        return PARTED
    goes_on = line.text.lstrip()[:1].islower() and not _STOPS.search(above.text)
    return " " if goes_on and abs(above.size - line.size) < 1 else "\n\n"


def _gap(lines: list[Line]) -> float:
    """The usual distance between two lines, in points."""
    down = [a.bottom - b.bottom for a, b in pairwise(lines)]
    usual = sorted(d for d in down if d > _SAME)
    return median(usual) if usual else 12.0


def _margins(lines: list[Line]) -> list[float]:
    """Where each line's column ends on the right: as far as its neighbours reach."""
    return [max(other.right for other in lines[max(0, n - 6) : n + 7]
                if other is line or (other.left < line.right and other.right > line.left))
            for n, line in enumerate(lines)]  # fmt: skip
