"""Which settings make a model recall a document soonest?

Each case trains on one document and measures greedy recall on the way, so that one run gives the
recall at every budget. The rows go into bench/results/DEVICE/recall.jsonl as they come; a killed
run goes on where it was. The tables and the picture are made from that file.

    python -m bench recall --device cpu
    python -m bench recall --timing      tokens/s of each setting, on an idle machine
    python -m bench recall --plot-only
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from bench import sweep as sweeps
from bench.common import RESULTS, read_lines, results_name, table
from bench.recall import analysis, compare
from bench.recall import documents as recall_documents
from bench.recall import run as recall_run
from bench.recall.settings import DOCUMENTS, SETTINGS, Case, cases
from liftcore import model as models
from liftcore.cli import info

LENGTH, PROBES = 1024, 16


def sweep(
    file: Path,
    todo: list[Case],
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    probes: int,
    minutes: float = float("inf"),
) -> None:
    """Runs the cases that are not in the file yet."""
    device = next(model.parameters()).device
    machine = {"device": info.device_name(device), "versions": info.versions()}
    samples, known = {}, {}

    def one(case: Case) -> tuple[dict, str]:
        name = case.document
        if name not in samples:
            samples[name] = recall_documents.read(name, tokenizer, length)
            known[name] = recall_run.before(model, tokenizer, samples[name], probes)
        row = recall_run.run(case, model, tokenizer, samples[name], probes)
        last = row["curve"][-1]
        text = f"recall {last['recall']:.1%} after {last['passes']:,} token-passes"
        return {**row, "before": known[name], **machine}, text

    sweeps.run(file, todo, one, minutes)


def report(folder: Path) -> dict:
    """Tables on the terminal, recall.json and recall.png, from the rows in the folder."""
    rows = read_lines(folder / "recall.jsonl")
    if not rows:
        raise SystemExit(f"no rows in {folder / 'recall.jsonl'}: run python -m bench recall first")
    timing = _timing(folder)
    rates = {n: t["tokens_per_second"] for n, t in timing.get("settings", {}).items()}
    settings = analysis.summary(rows, rates)
    groups = analysis.by_setting(rows)
    for s in settings:
        shares = [compare.scored_share(r) for r in groups[s["setting"]]]
        s["scored_a_pass"] = round(sum(shares) / len(shares), 4)
    result = {
        "command": "python -m bench recall",
        "rows": len(rows),
        "documents": sorted({r["document"] for r in rows}),
        "seeds": sorted({r["seed"] for r in rows}),
        "device": rows[-1]["device"],
        "versions": rows[-1]["versions"],
        "timed_on": timing.get("device", "the sweep itself: CPU time of one thread"),
        "settings": settings,
        "pareto": analysis.front(settings),
        "findings": compare.findings(rows),
        "official": compare.against(rows, settings, "official"),
    }
    (folder / "recall.json").write_text(json.dumps(result, indent=1) + "\n")
    print(_settings_table(settings, result["pareto"]))
    print(_findings_table(result["findings"]))
    for line in result["official"]:
        print(line["text"])
    try:
        from bench.recall import plot as recall_plot
    except ImportError:
        print("no picture: matplotlib is not installed")
    else:
        print(recall_plot.plot(rows, settings, folder / "recall.png"))
    return result


def _timing(folder: Path) -> dict:
    file = folder / "recall_timing.json"
    return json.loads(file.read_text()) if file.exists() else {}


def _settings_table(settings: list[dict], front: list[str]) -> str:
    head = ["setting", "runs", "90 % after", "95 % band", "tokens/s", "seconds", "reached",
            "recall at end", "facts", "text loss", "chat loss"]  # fmt: skip
    lines = [head]
    for s in settings:
        reached = s["passes_to_90"] is not None
        high = f"{s['passes_high']:.1f}" if s["passes_high"] else "never"
        low = f"{s['passes_low']:.1f}" if s["passes_low"] else "never"
        lines.append(
            [
                ("* " if s["setting"] in front else "  ") + s["setting"],
                str(s["runs"]),
                f"{s['passes_to_90']:.1f}" if reached else "never",
                f"{low} to {high}" if s["runs"] >= analysis.FEW_RUNS else "-",
                f"{s['tokens_per_second']:.0f}",
                f"{s['seconds_to_90']:.1f}" if reached else "-",
                f"{s['reached']}/{s['runs']}",
                f"{s['recall_last']:.2f}",
                "-" if s["facts"] is None else f"{s['facts']:.0%}",
                f"{s['text_loss']:+.2f}",
                f"{s['chat_loss']:+.2f}",
            ]
        )
    return (
        "median passes over the document to 90 % recall, and the seconds that they take\n"
        f"{table(lines)}\n* on the Pareto front of seconds and chat loss\n"
    )


def _findings_table(findings: dict) -> str:
    lines = [["finding", "passes", "difference in recall", "95 % band", "runs better", "verdict"]]
    for name, part in findings.items():
        for i, f in enumerate(part):
            lines.append(
                [
                    name if not i else "",
                    f"{f['passes']} scored" if f["scored"] else str(f["passes"]),
                    f"{f['difference']:+.3f}",
                    f"{f['low']:+.3f} to {f['high']:+.3f}",
                    f"{f['better']} of {f['pairs']}",
                    f["verdict"],
                ]
            )
    return table(lines) + "\n"


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench recall",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sweeps.options(parser, DOCUMENTS, "lines or settings to run")
    parser.add_argument("--length", type=int, default=LENGTH, help="tokens of a document, about")
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--timing", action="store_true", help="time the settings of the file alone")
    args = parser.parse_args(argv)
    device = torch.device(args.device or models.default_device())
    folder = args.out or RESULTS / results_name(device)
    file = folder / "recall.jsonl"
    if args.timing:
        _time(folder, *models.load(args.model, device=device), args.length, args.only)
    elif not args.plot_only:
        model, tokenizer = models.load(args.model, device=device)
        wanted = {*args.only} if args.only else {c.setting.line for c in cases()}
        todo = [c for c in cases() if wanted & {c.setting.name, c.setting.line}]
        sizes = dict(length=args.length, probes=args.probes, minutes=args.minutes)
        sweep(file, sweeps.share_of(todo, args), model, tokenizer, **sizes)
    report(folder)
    return 0


def _time(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    only: list[str] | None,
) -> None:
    """Times the settings of the file; `only` some of them go into a file of their own, since the
    rates of two runs do not compare."""
    sample = recall_documents.read(DOCUMENTS[0], tokenizer, length)
    known = {row["setting"] for row in read_lines(folder / "recall.jsonl")}
    wanted = [s for s in SETTINGS.values() if s.name in known and (not only or s.name in only)]
    rates = recall_run.timed(wanted, model, tokenizer, sample)
    device, chosen = next(model.parameters()).device, ["--only", *only] if only else []
    about = {
        "command": shlex.join(["python", "-m", "bench", "recall", "--timing", *chosen]),
        "device": info.device_name(device),
        "versions": info.versions(),
        "settings": rates,
    }
    file = "recall_timing_only.json" if only else "recall_timing.json"
    (folder / file).write_text(json.dumps(about, indent=1) + "\n")
    for name, rate in rates.items():
        print(f"{name}: {rate['tokens_per_second']} tokens/s "
              f"({rate['slowest']} to {rate['fastest']})")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
