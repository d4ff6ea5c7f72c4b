"""Writes the tables of docs/measurements.md from the files under bench/results.

A table stands between `<!-- bench: NAME -->` and `<!-- /bench -->`; what is between them is
replaced. A test checks that page and files agree.

    python -m bench readme
    python -m bench readme --check
"""

from __future__ import annotations

import argparse
import csv
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench import short
from bench.common import RESULTS, read_lines
from bench.readme import measured

PAGE = Path(__file__).resolve().parents[2] / "docs" / "measurements.md"
MARKED = re.compile(r"(<!-- bench: ([\w-]+) -->\n).*?(<!-- /bench -->)", re.S)
FOLDER = RESULTS / "cpu-epyc"


def rewritten(text: str, folder: Path = FOLDER) -> str:
    """The page with every marked table made anew. Raises KeyError for an unknown name."""
    return MARKED.sub(lambda m: m[1] + TABLES[m[2]](folder) + m[3], text)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench readme",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--check", action="store_true", help="only say whether they agree")
    args = parser.parse_args(argv)
    before = PAGE.read_text()
    after = rewritten(before)
    if args.check:
        print("the page and the results agree" if after == before else f"{PAGE.name} is stale")
        return int(after != before)
    PAGE.write_text(after)
    print("rewritten" if after != before else "nothing to change")
    return 0


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _measured(folder: Path) -> str:
    """Everything but the tables below."""
    rows = [list(row) for row in measured.rows(folder)]
    return _markdown(["what", "figure", "command"], rows)


def _settings(folder: Path) -> str:
    """Time to 90 % recall by setting, and what was learnt and forgotten at the end of the runs."""
    recall = _read(folder / "recall.json")
    rows = []
    for s in recall["settings"]:
        reached = s["passes_to_90"] is not None
        rows.append(
            [
                s["setting"] + (" *" if s["setting"] in recall["pareto"] else ""),
                str(s["runs"]),
                f"{s['passes_to_90']:.1f}" if reached else f"not in {s['passes_last']:.0f}",
                f"{s['tokens_per_second']:.0f}",
                f"{s['seconds_to_90']:.0f} s" if reached else "-",
                f"{s['reached']} of {s['runs']}",
                f"{s['recall_last']:.2f}",
                "-" if s["facts"] is None else f"{s['facts']:.0%}".replace("%", " %"),
                f"{s['text_loss']:+.2f}",
                f"{s['chat_loss']:+.2f}",
            ]
        )
    head = ["setting", "n", "passes to 90 % recall", "tokens/s", "training", "reached",
            "recall at the end", "facts after", "text loss", "chat loss"]  # fmt: skip
    return _markdown(head, rows)


def _findings(folder: Path) -> str:
    """The comparisons of the schedules after equal token-passes."""
    rows = [
        [name, f"{f['passes']} scored" if f.get("scored") else str(f["passes"]),
         f"{f['difference']:+.2f} ({f['low']:+.2f} to {f['high']:+.2f})",
         f"{f['better']} of {f['pairs']}", f["verdict"]]
        for name, part in _read(folder / "recall.json")["findings"].items()
        for f in part
    ]  # fmt: skip
    head = ["finding", "after passes", "difference in recall (95 % band)", "runs better", "verdict"]
    return _markdown(head, rows)


def _official(folder: Path) -> str:
    """Seconds of the official recipe over ours, run by run."""
    rows = [
        [r["setting"], r["base"], f"{'' if r['reached'] else 'more than '}{r['ratio']:.1f}",
         str(r["pairs"])]
        for r in _read(folder / "recall.json")["official"]
    ]  # fmt: skip
    return _markdown(["recipe", "against", "times the seconds to 90 % recall", "pairs"], rows)


def _scaling(folder: Path) -> str:
    """Fits of seconds and memory against length, and the crossings with in-context learning."""
    scaling = _read(folder / "scaling.json")
    crossings = {(c["schedule"], c["questions"]): _crossing(c) for c in scaling["crossings"]
                 if c["epochs"] == 1}  # fmt: skip
    rows = []
    for way, line in scaling["lines"].items():
        first, peaks = line.get("first"), line.get("peak_bytes")
        terms = first["coefficients"] if first else []
        text = " + ".join(
            f"{c * 1000**i:.3g}{('', ' n', ' n²')[i]}" for i, c in enumerate(terms)
        ).replace("+ -", "− ")
        at = [crossings.get((way, q), "") for q in (0, 1, 10, 100)]
        rows.append(
            [
                way,
                f"{max(line['measured'], default=0):,}",
                text,
                f"{first['r2']:.4f}" if first else "",
                f"{peaks['shortest'] / 2**30:.2f} to {peaks['longest'] / 2**30:.2f} GiB"
                if peaks
                else "",
                *at,
            ]
        )
    head = ["way", "measured to", "seconds for n thousand tokens", "R²", "peak memory",
            "first token", "Q = 1", "Q = 10", "Q = 100"]  # fmt: skip
    return _markdown(head, rows)


def _crossing(crossing: dict) -> str:
    """The length of a crossing, in italics where it is extrapolated."""
    if crossing["tokens"] is None:
        return "never"
    text = f"{crossing['tokens']:,}"
    return text if crossing["within_measured_lengths"] else f"*{text}*"


def _understand(folder: Path) -> str:
    """Right answers of each mix of objectives after equal seconds of training."""
    head = ["mix", "runs", "no text", "exchanged", "F1", "gain over segments", "half of the text",
            "single, two, time", "not told", "recall", "general", "text loss",
            "making"]  # fmt: skip
    rows = []
    for line in _read(folder / "understand.json")["lines"]:
        none, half = line["none"], _percent(line["half"]["right"]["mean"])
        if "whole" in line:
            half += f" (all of it: {_percent(line['whole']['right']['mean'])})"
        gain = line.get("gain", {}).get("none")
        rows.append(
            [
                line["line"],
                str(line["runs"]),
                _with_band(none["right"], "{:.0f}"),
                _percent(none["exchanged"]["mean"]),
                f"{none['f1']['mean']:.2f}",
                _with_band(gain, "{:+.0f}") if gain else "",
                half,
                ", ".join(_percent(none[kind]["mean"]) for kind in ("single", "two", "timeline")),
                _percent(none["unanswerable"]["mean"]),
                _percent(line["recall"]),
                f"{line['general']:.1f} of {line['general_of']}",
                f"{line['text']:.2f}",
                f"{line['making']:.0f} s" if "making" in line else "",
            ]
        )
    return _markdown(head, rows)


RATE = ("tokens/s", "slowest to fastest")


def _rate(row: dict) -> tuple[str, str]:
    return str(row["tokens_per_second"]), f"{row['slowest']} to {row['fastest']}"


def _many(folder: Path) -> str:
    """Documents an hour by how many share a step."""
    with (folder / "many.csv").open(newline="") as lines:
        rows = [
            [f"{r['segment_length']} tokens", r["together"], *_rate(r),
             r["documents_per_hour"], r["times_alone"]]
            for r in csv.DictReader(lines)
        ]  # fmt: skip
    head = ["segments", "documents a step", *RATE, "documents an hour",
            "times one after the other"]  # fmt: skip
    return _markdown(head, rows)


def _ranks(folder: Path) -> str:
    """Tokens a second by the processes that share a document."""
    rows = [
        [str(r["processes"]), str(r["batch"]), *_rate(r), str(r["times"]), f"{r['loss']:.4f}"]
        for r in _read(folder / "ranks.json")["rows"]
    ]
    head = ["processes", "segments a step", *RATE, "times one process", "loss"]
    return _markdown(head, rows)


def _kills(folder: Path) -> str:
    """What was lost by how many kills."""
    rows = [
        [name, str(part["kills"]), str(part["lost"]), f"`{part['command']}`"]
        for name, part in _read(folder / "kills.json").items()
    ]
    return _markdown(["killed", "times", "lost", "command"], rows)


def _niah(folder: Path) -> str:
    """Needles found by method and length."""
    groups = _read(folder / "niah.json")["groups"]
    lengths = sorted({group["key"][1] for group in groups})
    by_key = {tuple(group["key"]): group for group in groups}
    rows = [
        [method, *(_needles(by_key.get((method, length))) for length in lengths)]
        for method in dict.fromkeys(group["key"][0] for group in groups)
    ]
    return _markdown(["method", *(f"{length:,} tokens" for length in lengths)], rows)


def _loogle(folder: Path) -> str:
    """Mean scores in percent of the tasks, by method.

    A task of one question says nothing, nor does a score that is 0 throughout.
    """
    groups = [g for g in _read(folder / "loogle.json")["groups"] if g["cases"] > 1]
    names = {"token_f1": "F1", "rouge_l_recall": "ROUGE-L recall", "contains": "contains",
             "exact_match": "exact match", "bleu_1": "BLEU-1"}  # fmt: skip
    names = {n: label for n, label in names.items() if any(g["scores"].get(n) for g in groups)}
    rows = [
        [
            group["group"],
            group["method"],
            str(group["fit"]),
            *(_score(group["scores"].get(name)) for name in names),
        ]
        for group in groups
    ]
    return _markdown(["task", "method", "questions", *names.values()], rows)


def _short(folder: Path) -> str:
    """What the presets make of short documents."""
    head = ["document", "tokens", "preset", "dtype", "passes", "recall", "facts",
            "general, of those before", "own words"]  # fmt: skip
    return _markdown(head, [*map(short.cells, short.ordered(read_lines(folder / "short.jsonl")))])


def _keeping(folder: Path) -> str:
    """What is answered and what is kept by each change of the preset understand."""
    head = ["changed", "runs", "no text", "recall", "general", "own words", "text loss",
            "chat loss", "behind"]  # fmt: skip
    lines = _read(folder / "understand.json")["lines"]
    return _markdown(
        head,
        [
            [
                line["line"].removeprefix("understand, "),
                str(line["runs"]),
                _with_band(line["none"]["right"], "{:.0f}"),
                _percent(line["recall"]),
                f"{line['general']:.1f} of {line['general_of']}",
                f"{line['forgotten']:+.2f}",
                f"{line['text']:.2f}",
                f"{line['chat']:.2f}",
                _percent(line["kept"]),
            ]
            for line in lines
        ],
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _with_band(band: dict[str, float], form: str) -> str:
    mean, low, high = (form.format(100 * band[name]) for name in ("mean", "low", "high"))
    return f"{mean} % ({low} to {high})"


def _needles(group: dict | None) -> str:
    if group is None:
        return ""
    fit = group["fit"]
    return f"{round(fit * group['scores']['contains'])} of {fit}" if fit else "does not fit"


def _score(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


def _read(file: Path) -> dict:
    return json.loads(file.read_text())


TABLES: dict[str, Callable[[Path], str]] = {
    "measured": _measured,
    "recall-settings": _settings,
    "recall-findings": _findings,
    "recall-official": _official,
    "scaling": _scaling,
    "many": _many,
    "ranks": _ranks,
    "kills": _kills,
    "understand": _understand,
    # Of before: CPU seconds in place of counted work, and 20 general questions.
    "understand-cpu-seconds": lambda folder: _understand(folder / "cpu-seconds"),
    "understand-keeping": lambda folder: _keeping(folder / "keeping"),
    "short": _short,
    "niah": _niah,
    "loogle": _loogle,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
