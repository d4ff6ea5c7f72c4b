"""python -m bench families: every causal model type of transformers, tiny and random, tried in
everything that liftcore does to a model; the table goes to docs/families.md."""

from __future__ import annotations

import argparse
import contextlib
import io
import multiprocessing
import sys
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.common import versions
from bench.families.models import VOCABULARY, names, tiny

TABLE = Path(__file__).resolve().parents[2] / "docs" / "families.md"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PARTS = ("train", "measure", "save", "accelerate")
SEGMENT, LENGTH = 24, 60


def try_family(family: str, dtype: torch.dtype) -> dict[str, str]:
    """What each of PARTS gave on a tiny model of this type: "yes", "refused: …", "failed: …".

    A part that needs one before it is left out when that did not work.
    """
    from liftcore import adapter as adapters
    from liftcore import report
    from liftcore.config import LiftConfig
    from liftcore.errors import LiftError
    from liftcore.layers.lora import Adapter
    from liftcore.training.loop import train
    from liftcore.training.source import segments_alone

    said: dict[str, str] = {}

    @contextlib.contextmanager
    def part(name: str) -> Generator[None]:
        try:
            yield
            said.setdefault(name, "yes")
        except LiftError as error:
            said[name] = f"refused: {error}"
        except Exception as error:
            said[name] = f"failed: {_line(error)}"

    try:
        model = tiny(family, dtype)
    except Exception as error:
        return {"train": f"not built: {_line(error)}"}
    tokens = np.random.default_rng(0).integers(3, VOCABULARY, size=LENGTH)
    config = LiftConfig(
        segment_length=SEGMENT, epochs=2, rank=4, alpha=8, batch_size=2, learning_rate=1e-3
    )
    with part("train"):
        adapter = Adapter.of(model, config)
        adapter.install()
        result = train(adapter, segments_alone(tokens, config, []))
        said["train"] = "yes" if np.isfinite(result.loss) else f"failed: loss {result.loss}"
        if ";" in result.how.partition(" free")[2]:
            said["left"] = result.how.partition(" free")[2].strip("; ")
    if said["train"] == "yes":
        with part("measure"):
            report.measure(model, tokens, prefix=[], probes=2)
        with part("save"), tempfile.TemporaryDirectory() as folder:
            ids = torch.from_numpy(tokens[None, :12])
            right = model(input_ids=ids, use_cache=False).logits
            adapters.write(adapter, Path(folder))
            adapter.remove()
            adapters.read(model, Path(folder)).install()
            if not torch.equal(model(input_ids=ids, use_cache=False).logits, right):
                said["save"] = "failed: the adapter read back gives other logits"
    with part("accelerate"):
        _accelerate(family, dtype, said)
    return said


def _line(error: Exception) -> str:
    """An error in one line. What is wrong with a configuration stands in its second one."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([type(error).__name__, *(line.rstrip(":") for line in lines[:2])])


def _accelerate(family: str, dtype: torch.dtype, said: dict[str, str]) -> None:
    """Loss and logits with PEFT's LoRA before and after accelerate()."""
    import liftcore

    ids = torch.arange(3, 23)[None]
    call: dict[str, Any] = dict(input_ids=ids, labels=ids, use_cache=False)
    with torch.no_grad():
        try:
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
            model = get_peft_model(tiny(family, dtype), config).eval()
            right = model(**call)
        except Exception:  # PEFT is missing, or its layers break the model
            model = tiny(family, dtype)
            right = model(**call)
        report = liftcore.accelerate(model)
        ours = model(**call)
    error = (ours.logits.float() - right.logits.float()).norm() / right.logits.float().norm()
    bound = 1e-3 if dtype == torch.float32 else 0.1  # what bf16 rounds in another order
    if not error < bound or not (ours.loss - right.loss).abs() <= bound * right.loss.abs():
        said["accelerate"] = f"failed: loss {ours.loss:.4g}, not {right.loss:.4g}; {error:.2g}"
    elif not report.loss:
        said["accelerate"] = f"LoRA only: {report.left['loss']}"


def guarded(family: str, dtype: str, seconds: float) -> dict[str, str]:
    """try_family() in a process of its own, which is ended after so many seconds."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)

    def run() -> None:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            said = try_family(family, DTYPES[dtype])
        theirs.send(said)

    process = context.Process(target=run)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return {"train": f"not finished in {seconds:g} s"}
        return ours.recv()
    except EOFError:
        return {"train": "failed: the process ended"}
    finally:
        process.kill()
        process.join()


def table(rows: dict[str, dict[str, dict[str, str]]]) -> str:
    """The page docs/families.md of family -> dtype -> what try_family() gave."""
    used = ", ".join(f"{n} {versions()[n]}" for n in ("torch", "transformers") if n in versions())
    whole = sum(all(_works(said) for said in by.values()) for by in rows.values())
    lines = [
        "# Families of models",
        "",
        f"Each causal model type of transformers as a tiny random model, on a CPU ({used}). "
        f"{whole} of {len(rows)} train, are measured and are saved in both dtypes. "
        "`python -m bench families` writes this page.",
        "",
        "*train*: a few steps of `absorb`'s loop. *measure*: greedy recall. *save*: written and "
        "read back, the same logits. *accelerate*: the model's own loss and logits under PEFT's "
        "LoRA; *LoRA only* where the loss stays the model's. The last column says why not, or "
        "what of liftcore's own was left out.",
        "",
        "| type | dtype | " + " | ".join(PARTS) + " | why |",
        "|---" * (len(PARTS) + 3) + "|",
    ]
    for family, by in rows.items():
        for dtype, said in by.items():
            short = [said.get(p, "").partition(":")[0] for p in PARTS]
            why = [said[p].partition(":")[2].strip() for p in PARTS if ":" in said.get(p, "")]
            why += [said["left"]] if "left" in said else []
            why = "; ".join(dict.fromkeys(why)).replace("|", "/")[:300]
            lines.append(f"| {family} | {dtype} | " + " | ".join(short) + f" | {why} |")
    return "\n".join(lines) + "\n"


def _works(said: dict[str, str]) -> bool:
    return all(said.get(p) == "yes" for p in ("train", "measure", "save"))


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench families", description=__doc__)
    parser.add_argument("families", nargs="*", help="model types; all by default")
    parser.add_argument("--seconds", type=float, default=60, help="limit of one family and dtype")
    parser.add_argument("--out", type=Path, default=TABLE)
    args = parser.parse_args(argv)
    # Imported once, before the processes are forked.
    import transformers

    import liftcore
    import liftcore.report
    import liftcore.training.loop  # noqa: F401

    with contextlib.suppress(ImportError):
        import peft  # noqa: F401

    transformers.logging.set_verbosity_error()
    rows: dict[str, dict[str, dict[str, str]]] = {}
    for family in args.families or names():
        rows[family] = {}
        for dtype in DTYPES:
            said = rows[family][dtype] = guarded(family, dtype, args.seconds)
            print(family, dtype, said, flush=True)
        if args.out:
            args.out.parent.mkdir(parents=True, exist_ok=True)
            args.out.write_text(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
