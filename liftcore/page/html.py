"""The page itself. Whatever comes from outside is escaped, by escaped() or as JSON."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from importlib import resources

import numpy as np

from liftcore.adapter import base_name
from liftcore.config import LiftConfig
from liftcore.memory import Memory
from liftcore.page.pictures import BINS, curve, strip
from liftcore.page.words import Seen, escaped, figures, percent, shares, words

VERDICTS = {"right": "✓ right", "in part": "~ in part", "wrong": "✗ wrong"}


def html(memory: Memory, seen: Seen, command: str) -> str:
    """The whole page."""
    files = resources.files("liftcore.page")
    style, script = ((files / name).read_text("utf-8") for name in ("page.css", "page.js"))
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    sections = {
        "text": ("Text", words(seen)),
        "questions": ("Questions", _questions(memory, seen)),
        "training": ("Training", _training(memory)),
        "settings": ("Settings", _settings(memory.config)),
        "again": ("Repeat", _again(command)),
    }
    links = "".join(f'<a href="#{name}">{head}</a>' for name, (head, _) in sections.items())
    bodies = "".join(
        f'<section id="{name}"><h2>{head}</h2>{inner}</section>'
        for name, (head, inner) in sections.items()
    )
    title = escaped(memory.title)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}: what is recalled</title><style>{style}</style></head><body>"
        '<a class="skip" href="#text">To the text</a>'
        f"<header><h1>{title}</h1>{_summary(memory, seen)}</header>"
        f'<div class="map">{_map(memory, seen)}<nav aria-label="Sections">{links}</nav></div>'
        f'<main>{bodies}</main><div id="tip" role="tooltip" hidden></div>'
        '<div id="said" class="unseen" role="status"></div>'
        f'<script type="application/json" id="figures">{figures(memory.tokenizer, seen)}</script>'
        f"<script>{script}</script></body></html>\n"
    )


def _hash(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _seconds(seconds: float) -> str:
    minutes = int(seconds) // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {int(seconds) % 60} s" if minutes else f"{seconds:.1f} s"


def _pairs(kind: str, entries: list[tuple[str, str]]) -> str:
    cells = "".join(
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}</dd></div>" for name, value in entries
    )
    return f'<dl class="{kind}">{cells}</dl>'


def _summary(memory: Memory, seen: Seen) -> str:
    """The figures in short."""
    report = memory.report
    entries = [("recited", percent(report.recall))]
    if seen.after is not None and seen.before is not None:
        entries.append(("next token known", percent(seen.after.right)))
        entries.append(("… before training", percent(seen.before.right)))
    if seen.asked:
        right = sum(each.verdict == "right" for each in seen.asked)
        entries.append(("questions right", f"{right} of {len(seen.asked)}"))
    if report.forgotten is not None:
        entries.append(("forgotten", f"{report.forgotten:.2f} nats"))
    entries.append(("tokens", f"{memory.length:,}"))
    return _pairs("summary", [*entries, ("trained in", _seconds(memory.training.seconds))])


def _map(memory: Memory, seen: Seen) -> str:
    """The strips; one slider lies over both, by which the text is reached."""
    rows, report = [], memory.report
    if seen.after is not None:
        known = strip(shares(seen.after), "Mean probability of the tokens, along the document")
        rows.append(("known", known))
    if report.positions:
        recited = report.bins(min(BINS, report.length))
        rows.append(("recited", strip(recited, "Recall by greedy probes, along the document")))
    pictures = "".join(f"<span>{name}</span>{picture}" for name, picture in rows)
    if seen.after is not None:
        pictures += (
            '<div id="place" role="slider" tabindex="0" aria-label="Place in the document" '
            f'aria-valuemin="1" aria-valuemax="{len(shares(seen.after))}" aria-valuenow="1">'
            '<div id="seen"></div></div>'
        )
    return f'<div class="strips">{pictures}</div>' if pictures else ""


def _questions(memory: Memory, seen: Seen) -> str:
    if not seen.asked:
        why = "They were not asked." if memory.questions else "None are kept with this memory."
        return f"<p>{why}</p>"
    text = "".join(piece.text for piece in seen.pieces)
    ends = np.cumsum([len(piece.text) for piece in seen.pieces])
    entries = []
    for asked in seen.asked:
        at = text.find(asked.pair.evidence) if asked.pair.evidence else -1
        link = ""
        if at >= 0:
            token = seen.pieces[int(np.searchsorted(ends, at, side="right"))].start
            link = f' <a href="#words" data-token="{token}">in the text</a>'
        entries.append(
            f'<li data-verdict="{asked.verdict}"><p class="question">'
            f"{escaped(asked.pair.question)}{link}</p>"
            f'<p><span class="verdict">{VERDICTS[asked.verdict]}</span> '
            f"{escaped(asked.reply) or '(nothing)'}</p>"
            f'<p class="answer">answer: {escaped(asked.pair.answer)}</p></li>'
        )
    verdicts = [each.verdict for each in seen.asked]
    counts = ", ".join(f"{verdicts.count(name)} {name}" for name in VERDICTS)
    return (
        f"<p>{len(seen.asked)} of the {len(memory.questions):,} questions that it was trained on, "
        f"asked once more: {counts}. Right is a reply that holds the answer word by word; in part, "
        "one that shares half of its words.</p>"
        '<p><label><input type="checkbox" id="faulty"> only those that are not right</label></p>'
        f'<ol class="asked">{"".join(entries)}</ol>'
    )


def _training(memory: Memory) -> str:
    training, report = memory.training, memory.report
    rate = training.token_passes / max(training.seconds, 1e-9)
    entries = [
        ("training", f"{_seconds(training.seconds)}, {training.steps:,} steps"),
        ("token-passes", f"{training.token_passes:,}, {rate:,.0f} a second"),
        ("loss of the last epoch", f"{training.loss:.3f}"),
    ]
    for name, seconds in (
        ("fitting the adapter to the document", training.starting),
        ("making questions", training.making),
        ("writing the model's own words, once a model", training.own_words),
    ):
        entries += [(name, _seconds(seconds))] if seconds else []
    probes = (
        f"{len(report.positions)} places: {report.prompt_tokens} tokens in, {report.new_tokens} "
        "out, compared one by one"
    )
    entries += [("base model", base_name(memory.model)), ("recited", probes), ("how", training.how)]
    drawn = "<p>The curve of the loss was not kept.</p>"
    if training.curve:
        picture = curve(training.curve, memory.config.epochs)
        what = "loss against epochs: each step, and the mean of a twentieth of the run"
        drawn = f"<figure>{picture}<figcaption>{what}</figcaption></figure>"
    return drawn + _pairs("list", entries)


def _settings(config: LiftConfig) -> str:
    usual, rows = LiftConfig(), []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        changed = value != getattr(usual, each.name)
        shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
        rows.append(
            f'<tr{" class=changed" if changed else ""}><th scope="row">{each.name}</th>'
            f"<td>{escaped(shown)}{' •' if changed else ''}</td></tr>"
        )
    return (
        "<p>• differs from plain LoRA on all layers, <code>LiftConfig()</code></p>"
        f"<table>{''.join(rows)}</table>"
    )


def _again(command: str) -> str:
    if not command:
        return "<p>No command is known for this memory.</p>"
    return (
        f'<pre id="command" tabindex="0">{escaped(command)}</pre>'
        '<button type="button" id="copy">Copy the command</button>'
    )
