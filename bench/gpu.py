"""Everything that needs a GPU, in one command, in the order of value.

Runs from a bare checkout with the machine's own Python and no network. Each part is a process of
its own within a time box, and its rows lie in bench/results/CARD/ as soon as they are known. After
every part the folder is packed into one archive. The same command goes on where it was: parts that
are done are left out, a part that was cut off measures what it lacks. A part that cannot run is
named with the reason.

    python -m bench gpu
    python -m bench gpu --only kernels --minutes 3
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

import torch

from bench.common import PACKAGES, RESULTS, results_name, table, versions

ROOT = Path(__file__).resolve().parent.parent
EMBEDDED = "the embedded model"
# A part gets so much longer than it is told, to start and to draw.
GRACE = 0.5


@dataclass(frozen=True)
class Part:
    """One process.

    command  arguments of Python, with {minutes} and {folder} filled in
    minutes  its box, as a share of the whole; 0: what others have left over
    needs    modules, or EMBEDDED
    resume   added to the command, but for --fresh; `fresh` for it alone
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    needs: tuple[str, ...] = ()
    resume: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def _bench(name: str, *options: str) -> tuple[str, ...]:
    return ("-m", "bench", name, "--device", "cuda", *options, "--minutes", "{minutes}")


LLAMA = ("--model", "llama-3-8b")
RESUME = ("--resume",)
TESTS = ("steps", "native", "lora", "lora_many", "head_loss", "head_loss_soft", "lora_fp8")
PARTS = (
    Part(
        "tests",
        ("-m", "pytest", "-p", "bench.test_rows", "--rows", "{folder}/tests.jsonl", "-q", "-n", "6",
         "--maxschedchunk", "1", *(f"tests/gpu/test_{name}_gpu.py" for name in TESTS)),
        6, ("pytest", "xdist"), RESUME,
    ),
    Part("kernels", _bench("kernels", *LLAMA, "--tokens", "2048", "8192"), 5, (), RESUME),
    Part(
        "step",
        _bench("step", "--fast", *LLAMA, "qwen3-8b", "smollm2-135m", "--tokens", "8192", "2048"),
        5, ("peft", "accelerate"), RESUME,
    ),
    Part("profile", _bench("profile", *LLAMA, "--tokens", "8192"), 3),
    Part(
        "dropin", _bench("dropin", *LLAMA, "--tokens", "512", "2048"),
        2.5, ("peft", "accelerate"), RESUME,
    ),
    Part("decode", _bench("decode", *LLAMA), 1.5, ("peft",)),
    Part("scaling", _bench("scaling", "--only", "jitter", "icl"), 4, (), (), ("--fresh",)),
    Part("tune", _bench("tune", *LLAMA), 0),
    Part(
        "recall",
        _bench("recall", "--documents", "fiction-0", "fiction-1", "--only", "schedule"),
        0, (EMBEDDED,),
    ),
)  # fmt: skip


def is_there(need: str) -> bool:
    if need != EMBEDDED:
        return importlib.util.find_spec(need) is not None
    try:
        from liftcore import embedded
    except ImportError:  # something that liftcore needs itself
        return False
    return embedded.is_available()


def arguments(part: Part, minutes: float, folder: Path, fresh: bool) -> list[str]:
    """What Python is given to run a part for so long."""
    own = {"minutes": round(max(0.2, minutes - GRACE), 2), "folder": folder}
    return [a.format(**own) for a in (*part.command, *(part.fresh if fresh else part.resume))]


def run(part: Part, minutes: float, folder: Path, fresh: bool = False) -> dict:
    """Runs one part for at most `minutes` and returns how it ended; its output goes into a log."""
    missing = [need for need in part.needs if not is_there(need)]
    if missing:
        return {"part": part.name, "ran": False, "reason": f"{', '.join(missing)} not installed"}
    filled = arguments(part, minutes, folder, fresh)
    started, log = time.perf_counter(), folder / f"{part.name}.log"
    environment = {
        **os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"
    }  # fmt: skip
    with log.open("w") as out:
        # A session of its own, so that what the part started ends with it.
        child = subprocess.Popen(
            [sys.executable, *filled], cwd=ROOT, env=environment, stdout=out,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = child.wait(60 * minutes)
        except subprocess.TimeoutExpired:
            code = None
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    last = next((t for t in reversed(log.read_text().splitlines()) if t.strip()), "")
    return {
        "part": part.name,
        "ran": True,
        "seconds": round(time.perf_counter() - started, 1),
        "code": code,
        "last_line": last[:200],
        "command": "python " + " ".join(filled),
    }


def said(result: dict) -> str:
    if not result["ran"]:
        return f"not run: {result['reason']}"
    if result["code"] is None:
        return "cut off: its time was over; its rows are kept"
    return "done" if result["code"] == 0 else f"failed: {result['last_line']}"


def boxes(parts: list[Part], minutes: float) -> dict[str, float]:
    """Minutes by part: all of them together take `minutes`, in the proportions of their boxes."""
    whole = sum(part.minutes for part in parts)
    return {part.name: minutes * part.minutes / whole if part.minutes else 0.0 for part in parts}


def pack(folder: Path, archive: Path, mib: float) -> list[str]:
    """Packs a folder into a .tar.gz of at most so many MiB, and returns what was left out: the
    largest files, where not all of them fit."""
    left, out = 2**20 * mib, []
    files = sorted((f for f in folder.rglob("*") if f.is_file()), key=lambda f: f.stat().st_size)
    new = archive.with_name(archive.name + ".new")
    with tarfile.open(new, "w:gz") as tar:
        for file in files:
            # A header and the end of a block are about a KiB, whatever is in the file.
            left -= len(zlib.compress(file.read_bytes())) + 1024
            name = file.relative_to(folder.parent)
            if left < 0:
                out.append(str(name))
            else:
                tar.add(file, str(name))
    new.replace(archive)
    return out


def earlier(file: Path, here: dict[str, str]) -> dict[str, dict]:
    """How each part ended before, with the same versions."""
    if not file.exists():
        return {}
    known = json.loads(file.read_text())
    return {r["part"]: r for r in known["parts"]} if known["versions"] == here else {}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench gpu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--only", nargs="+", choices=[p.name for p in PARTS])
    parser.add_argument("--minutes", type=float, default=27.0, help="for everything (%(default)s)")
    parser.add_argument("--fresh", action="store_true", help="run and measure again what is there")
    parser.add_argument("--archive", type=Path, help="of the results (bench/results/CARD.tar.gz)")
    parser.add_argument("--archive-mib", type=float, default=16.0, help="its size at most")
    parser.add_argument("--triton-cache", type=Path, help="kernels that were compiled elsewhere")
    args = parser.parse_args(argv)
    if args.triton_cache:
        from bench.kernels.jit import moved

        print(f"{moved(args.triton_cache)} kernels of {args.triton_cache}", file=sys.stderr)
        os.environ["TRITON_CACHE_DIR"] = str(args.triton_cache.resolve())
    end = time.monotonic() + 60 * args.minutes
    parts = [p for p in PARTS if not args.only or p.name in args.only]
    if not torch.cuda.is_available():
        for part in parts:
            print(f"{part.name}: skipped, this machine has no CUDA GPU")
        return 0
    device, here = torch.device("cuda"), versions()
    folder = RESULTS / results_name(device)
    folder.mkdir(parents=True, exist_ok=True)
    archive = args.archive or folder.with_name(folder.name + ".tar.gz")
    file = folder / "gpu.json"
    results = {} if args.fresh else earlier(file, here)
    done = {name for name, r in results.items() if r["ran"] and r["code"] == 0}
    todo = [p for p in parts if p.name not in done]
    box, left_out = boxes(todo, args.minutes), []
    for i, part in enumerate(todo):
        left = (end - time.monotonic()) / 60
        if left < (0.3 if part.minutes else 1.0):
            result = {"part": part.name, "ran": False, "reason": "the time is over"}
        else:
            rest = left / (len(todo) - i)
            result = run(part, min(left, box[part.name] or rest), folder, args.fresh)
        results[part.name] = result
        print(f"{part.name}: {said(result)}", file=sys.stderr, flush=True)
        about = {"command": " ".join(["python -m bench gpu", *argv]), "versions": here}
        text = json.dumps({**about, "parts": list(results.values())}, indent=1)
        file.write_text(text + "\n")
        left_out = pack(folder, archive, args.archive_mib)
    rows = [
        (p.name, f"{results[p.name].get('seconds', 0):.0f} s",
         said(results[p.name]) + (" before" if p.name in done else ""))
        for p in parts
    ]  # fmt: skip
    print(
        f"{torch.cuda.get_device_name(device)}\n{table([('part', 'time', 'how it ended'), *rows])}"
    )
    print("peers not installed, so not run: " + ", ".join(n for n in PACKAGES if n not in here))
    print(f"results: {folder}\narchive: {archive}")
    if left_out:
        print(f"too large for the archive: {', '.join(left_out)}")
    failed = [p for p in parts if results[p.name]["ran"] and results[p.name]["code"]]
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
