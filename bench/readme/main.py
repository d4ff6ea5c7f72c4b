"""Writes the tables of docs/measurements.md from the files under bench/results.

A table stands between `<!-- bench: NAME -->` and `<!-- /bench -->`; what is between them is
replaced. A test checks that page and files agree.

    python -m bench readme
    python -m bench readme --check
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from collections.abc import Callable
from pathlib import Path

from bench.common import RESULTS
from bench.readme import measured, quality
from bench.readme.tables import markdown, read

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


def _measured(folder: Path) -> str:
    """Everything but the tables below."""
    rows = [list(row) for row in measured.rows(folder)]
    return markdown(["what", "figure", "command"], rows)


def _scaling(folder: Path) -> str:
    """Fits of seconds and memory against length, and the crossings with in-context learning."""
    scaling = read(folder / "scaling.json")
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
    return markdown(head, rows)


def _crossing(crossing: dict) -> str:
    """The length of a crossing, in italics where it is extrapolated."""
    if crossing["tokens"] is None:
        return "never"
    text = f"{crossing['tokens']:,}"
    return text if crossing["within_measured_lengths"] else f"*{text}*"


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
    return markdown(head, rows)


def _ranks(folder: Path) -> str:
    """Tokens a second by the processes that share a document."""
    rows = [
        [str(r["processes"]), str(r["batch"]), *_rate(r), str(r["times"]), f"{r['loss']:.4f}"]
        for r in read(folder / "ranks.json")["rows"]
    ]
    head = ["processes", "segments a step", *RATE, "times one process", "loss"]
    return markdown(head, rows)


def _kills(folder: Path) -> str:
    """What was lost by how many kills."""
    rows = [
        [name, str(part["kills"]), str(part["lost"]), f"`{part['command']}`"]
        for name, part in read(folder / "kills.json").items()
    ]
    return markdown(["killed", "times", "lost", "command"], rows)


def _niah(folder: Path) -> str:
    """Needles found by method and length."""
    groups = read(folder / "niah.json")["groups"]
    lengths = sorted({group["key"][1] for group in groups})
    by_key = {tuple(group["key"]): group for group in groups}
    rows = [
        [method, *(_needles(by_key.get((method, length))) for length in lengths)]
        for method in dict.fromkeys(group["key"][0] for group in groups)
    ]
    return markdown(["method", *(f"{length:,} tokens" for length in lengths)], rows)


def _loogle(folder: Path) -> str:
    """Mean scores in percent of the tasks, by method.

    A task of one question says nothing, nor does a score that is 0 throughout.
    """
    groups = [g for g in read(folder / "loogle.json")["groups"] if g["cases"] > 1]
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
    return markdown(["task", "method", "questions", *names.values()], rows)


def _needles(group: dict | None) -> str:
    if group is None:
        return ""
    fit = group["fit"]
    return f"{round(fit * group['scores']['contains'])} of {fit}" if fit else "does not fit"


def _score(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f}"


TABLES: dict[str, Callable[[Path], str]] = {
    "measured": _measured,
    "recall-settings": quality.settings,
    "recall-search": quality.search,
    "recall-findings": quality.findings,
    "recall-official": quality.official,
    "scaling": _scaling,
    "many": _many,
    "ranks": _ranks,
    "kills": _kills,
    "understand": quality.understand,
    # Of before: CPU seconds in place of counted work, and 20 general questions.
    "understand-cpu-seconds": lambda folder: quality.understand(folder / "cpu-seconds"),
    "understand-keeping": lambda folder: quality.keeping(folder / "keeping"),
    "short": quality.short,
    "niah": _niah,
    "loogle": _loogle,
}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
