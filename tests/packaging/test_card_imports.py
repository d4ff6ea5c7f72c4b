"""Everything can be imported with the packages of requirements-card.lock alone."""

import json
import os
import subprocess
import sys

import pytest

from bench.gpu import ROOT

# Of this machine's packages those that the lock does not name are made to be missing, but for what
# the named ones need in the versions that are here.
CODE = """
import importlib, json, re, sys
from importlib.metadata import PackageNotFoundError, packages_distributions, requires

def plain(name):
    return re.sub("[-_.]+", "-", re.match("[A-Za-z0-9._-]+", name)[0]).lower()

names, modules = json.loads(sys.argv[1])
known, waiting = {"liftcore"}, names
while waiting:
    if (name := waiting.pop()) not in known:
        known.add(name)
        try:
            waiting += [plain(r) for r in requires(name) or () if "extra ==" not in r]
        except PackageNotFoundError:
            pass
for module, owners in packages_distributions().items():
    if not known & {*map(plain, owners)}:
        sys.modules[module] = None
failed = {}
for module in modules:
    try:
        importlib.import_module(module)
    except ImportError as error:
        failed[module] = str(error)
print(json.dumps([failed, all(sys.modules.get(m, "") is None for m in ("gguf", "platformdirs"))]))
"""


def test_all_but_scores_need_no_more_than_a_gpu_machine_has():
    lines = (ROOT / "requirements-card.lock").read_text().splitlines()
    names = [n.split("==")[0].replace("_", "-").lower() for n in lines if "==" in n]
    assert {"torch", "triton", "transformers"} <= {*names}
    assert not {"platformdirs", "gguf"} & {*names}
    files = [*ROOT.glob("liftcore/**/*.py"), *ROOT.glob("bench/**/*.py")]
    modules = [".".join(f.relative_to(ROOT).with_suffix("").parts) for f in files]
    modules += [f"liftcore.kernels.{f.stem}" for f in ROOT.glob("kernels/*.py")]
    modules = [m for m in modules if not m.endswith(("__init__", "__main__"))]
    given = json.dumps([names, sorted(modules)])
    done = subprocess.run(
        [sys.executable, "-c", CODE, given], cwd=ROOT, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    failed, blocked = json.loads(done.stdout.splitlines()[-1])
    if not blocked:
        pytest.skip("no package is here that the lock lacks: the other tests import with it alone")
    # The scores of answers need packages of their own.
    assert not [name for name in failed if not name.startswith("bench.evaluations")], failed
