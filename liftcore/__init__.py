"""liftcore: make LIFT (Long Input Fine-Tuning) fast and practical.

    model, tokenizer = liftcore.load("smollm2-135m")
    memory = liftcore.absorb(model, tokenizer, "report.txt")
    print(memory.ask("What did the report conclude?"))
    memory.save("report-memory")

Names are imported on first use, so that `import liftcore` needs neither a GPU nor Triton and
costs next to nothing.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

# In a bare checkout kernels/ lies beside liftcore/; an installed package has it inside.
_root = Path(__file__).resolve().parent.parent
if (_root / "kernels" / "reference.py").is_file():
    __path__.append(str(_root))

# cuBLAS gives the same bits every time only with this, and reads it at its first product.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

_PUBLIC = {
    "LiftConfig": "liftcore.config",
    "LiftError": "liftcore.errors",
    "Memory": "liftcore.memory",
    "absorb": "liftcore.lift",
    "absorb_many": "liftcore.many",
    "accelerate": "liftcore.drop_in.accelerate",
    "estimate": "liftcore.cost",
    "load": "liftcore.model",
    "load_memory": "liftcore.memory",
    "restore": "liftcore.drop_in.accelerate",
}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in ("segments", "kernels"):
        return importlib.import_module(f"liftcore.{name}")
    raise AttributeError(f"module 'liftcore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
