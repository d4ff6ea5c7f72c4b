"""The text on the page, token by token, and the figures of each token that the script shows."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from html import escape
from typing import Any

import numpy as np

from liftcore.page.asked import Asked
from liftcore.page.forced import Forced
from liftcore.page.pictures import BINS, level, means
from liftcore.page.pieces import Piece, spelled
from liftcore.terminal import plain
from liftcore.tokens import Tokenizer

# Tokens from which on a block may end at a line break: a browser lays out only the blocks it shows.
BLOCK = 64
WEAKEST, PLACE = 5, 32  # places that are named, and tokens of each
LEVELS = ("90 % and more", "50 to 90 %", "10 to 50 %", "1 to 10 %", "below 1 %")


@dataclass
class Seen:
    """What was found out about a memory for its page."""

    pieces: list[Piece] = field(default_factory=list)
    after: Forced | None = None  # with the adapter
    before: Forced | None = None  # without it
    asked: list[Asked] = field(default_factory=list)


def escaped(text: object) -> str:
    """Text for an element, or for an attribute in double quotes, without control characters."""
    return escape(plain(str(text)))


def percent(share: float | None) -> str:
    return "not measured" if share is None else f"{100 * share:.1f} %"


def shares(read: Forced) -> np.ndarray:
    """Mean probability along the document, float64 [up to BINS]."""
    return means(np.exp(-read.nats), min(BINS, len(read.tokens)))


def words(seen: Seen) -> str:
    """The text, what its colours mean, and links to the places that are known least."""
    if seen.after is None:
        return "<p>This memory was saved without its document.</p>"
    levels = [_level(_nats(seen.after, piece)) for piece in seen.pieces]
    blocks, block, tokens = [], [], 0
    for piece, each in zip(seen.pieces, levels, strict=True):
        known = "" if each is None else f' class="l{each}"'
        block.append(f"<i{known}>{escaped(piece.text)}</i>")
        tokens += piece.stop - piece.start
        if tokens >= BLOCK and piece.text.endswith("\n"):
            blocks.append("".join(block))
            block, tokens = [], 0
    blocks.append("".join(block))
    legend = "".join(
        f'<li><i class="l{n}">{name}</i> {percent(levels.count(n) / len(levels))}</li>'
        for n, name in enumerate(LEVELS)
    )
    return (
        "<p>How likely the model finds each token of the text behind the few before it, with "
        f"nothing else to read; beside each colour its share of the {len(levels):,}:</p>"
        f'<ul class="legend">{legend}</ul>{_weakest(seen.after)}'
        '<p class="keys">Point at a token, touch it, or reach the text with Tab and move with the '
        "arrow keys; N and P go to the next and the previous place that is not known.</p>"
        '<div id="words" lang="" dir="auto" role="group" tabindex="0" aria-label="The text, token '
        f'by token">{"".join(f"<div>{each}</div>" for each in blocks if each)}</div>'
    )


def _weakest(read: Forced) -> str:
    nats = np.nan_to_num(read.nats)
    places = [(nats[at : at + PLACE].mean(), at) for at in range(0, len(nats), PLACE)]
    links = [
        f'<a href="#words" data-token="{at}">token {at + 1:,}</a> ({percent(math.exp(-mean))})'
        for mean, at in sorted(places, reverse=True)[:WEAKEST]
        if mean > 0.1
    ]
    return f"<p>Least known, each {PLACE} tokens long: {', '.join(links)}.</p>" if links else ""


def figures(tokenizer: Tokenizer, seen: Seen) -> str:
    """JSON for the script: of each piece hundredths of a nat, with the adapter and without it
    (null: not known), and the likelier token where there is one; pieces of several tokens."""
    if seen.after is None or seen.before is None:
        return "{}"
    after, before = (
        [_hundredths(_nats(read, piece)) for piece in seen.pieces]
        for read in (seen.after, seen.before)
    )
    names, likelier = _likelier(tokenizer, seen)
    along = [None if math.isnan(share) else round(share, 3) for share in shares(seen.after)]
    values: dict[str, Any] = {
        "tokens": len(seen.after.tokens),
        "after": after,
        "before": before,
        "names": names,
        "likelier": likelier,
        "several": {n: p.stop - p.start for n, p in enumerate(seen.pieces) if p.stop > p.start + 1},
        "shares": along,
    }
    # Nothing in it can end the script element.
    return json.dumps(values, separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def _likelier(tokenizer: Tokenizer, seen: Seen) -> tuple[list[str], dict[int, int]]:
    """The words that the model would rather say, and for each piece of one token where it would
    the number of one of them."""
    assert seen.after is not None
    numbers: dict[int, int] = {}
    likelier = {}
    for n, piece in enumerate(seen.pieces):
        token = int(seen.after.likeliest[piece.start])
        if piece.stop == piece.start + 1 and token not in (-1, seen.after.tokens[piece.start]):
            likelier[n] = numbers.setdefault(token, len(numbers))
    return [spelled(tokenizer, token) for token in numbers], likelier


def _nats(read: Forced, piece: Piece) -> float:
    """Of all tokens of a piece together; NaN where nothing stands before one."""
    return float(read.nats[piece.start : piece.stop].sum())


def _level(nats: float) -> int | None:
    return None if math.isnan(nats) else level(math.exp(-nats))


def _hundredths(nats: float) -> int | None:
    return None if math.isnan(nats) else round(100 * nats)
