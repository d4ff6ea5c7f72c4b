"""The tables of what is recalled, answered and kept."""

from __future__ import annotations

from pathlib import Path

from bench import short as short_documents
from bench.common import read_lines
from bench.readme.tables import markdown, percent, read, with_band

# Lines of bench recall that change one thing of the preset memorize.
AROUND = ("memorize", "document", "search")


def settings(folder: Path) -> str:
    """Time to 90 % recall by setting, and what was learnt and forgotten at the end of the runs."""
    recall = read(folder / "recall.json")
    rows = []
    for s in recall["settings"]:
        if s["line"] in AROUND:
            continue
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
    return markdown(head, rows)


def search(folder: Path) -> str:
    """What is recalled and forgotten around the preset memorize: more passes first, and then what
    recalls most."""
    settings = [s for s in read(folder / "recall.json")["settings"] if s["line"] in AROUND]
    rows = [
        [
            s["setting"],
            str(s["runs"]),
            f"{s['passes_last']:.1f}",
            f"{s['recall_last']:.2f}, {s['recall_worst']:.2f}",
            f"{s['reached']} of {s['runs']}",
            f"{s['text_loss']:+.2f}",
            f"{s['chat_loss']:+.2f}",
        ]
        for s in sorted(settings, key=lambda s: (-s["passes_last"] // 0.5, -s["recall_last"]))
    ]
    head = ["setting", "n", "passes", "recall: mean, worst", "at 90 %", "text loss", "chat loss"]
    return markdown(head, rows)


def findings(folder: Path) -> str:
    """The comparisons of the schedules after equal token-passes."""
    rows = [
        [name, f"{f['passes']} scored" if f.get("scored") else str(f["passes"]),
         f"{f['difference']:+.2f} ({f['low']:+.2f} to {f['high']:+.2f})",
         f"{f['better']} of {f['pairs']}", f["verdict"]]
        for name, part in read(folder / "recall.json")["findings"].items()
        for f in part
    ]  # fmt: skip
    head = ["finding", "after passes", "difference in recall (95 % band)", "runs better", "verdict"]
    return markdown(head, rows)


def official(folder: Path) -> str:
    """Seconds of the official recipe over ours, run by run."""
    rows = [
        [r["setting"], r["base"], f"{'' if r['reached'] else 'more than '}{r['ratio']:.1f}",
         str(r["pairs"])]
        for r in read(folder / "recall.json")["official"]
    ]  # fmt: skip
    return markdown(["recipe", "against", "times the seconds to 90 % recall", "pairs"], rows)


def understand(folder: Path) -> str:
    """Right answers of each mix of objectives after equal seconds of training."""
    head = ["mix", "runs", "no text", "exchanged", "F1", "gain over segments", "half of the text",
            "passages", "single, two, time", "not told", "recall", "general", "text loss",
            "making"]  # fmt: skip
    rows = []
    for line in read(folder / "understand.json")["lines"]:
        none = line["none"]
        half = percent(line["half"]["right"]["mean"]) if "half" in line else ""
        if "whole" in line:
            half += f" (all of it: {percent(line['whole']['right']['mean'])})"
        gain = line.get("gain", {}).get("none")
        rows.append(
            [
                line["line"],
                str(line["runs"]),
                with_band(none["right"], "{:.0f}"),
                percent(none["exchanged"]["mean"]),
                f"{none['f1']['mean']:.2f}",
                with_band(gain, "{:+.0f}") if gain else "",
                half,
                percent(line["passages"]["right"]["mean"]) if "passages" in line else "",
                ", ".join(percent(none[kind]["mean"]) for kind in ("single", "two", "timeline")),
                percent(none["unanswerable"]["mean"]),
                percent(line["recall"]),
                f"{line['general']:.1f} of {line['general_of']}",
                f"{line['text']:.2f}",
                f"{line['making']:.0f} s" if "making" in line else "",
            ]
        )
    return markdown(head, rows)


def keeping(folder: Path) -> str:
    """What is answered and what is kept by each change of the preset understand."""
    head = ["changed", "runs", "no text", "recall", "general", "own words", "text loss",
            "chat loss", "behind"]  # fmt: skip
    lines = [x for x in read(folder / "understand.json")["lines"] if "forgotten" in x]
    return markdown(
        head,
        [
            [
                line["line"].removeprefix("understand, "),
                str(line["runs"]),
                with_band(line["none"]["right"], "{:.0f}"),
                percent(line["recall"]),
                f"{line['general']:.1f} of {line['general_of']}",
                f"{line['forgotten']:+.2f}",
                f"{line['text']:.2f}",
                f"{line['chat']:.2f}",
                percent(line["kept"]),
            ]
            for line in lines
        ],
    )


def short(folder: Path) -> str:
    """What the presets make of short documents."""
    head = ["document", "tokens", "preset", "dtype", "passes", "recall", "facts",
            "general, of those before", "own words"]  # fmt: skip
    return markdown(
        head,
        [*map(short_documents.cells, short_documents.ordered(read_lines(folder / "short.jsonl")))],
    )
