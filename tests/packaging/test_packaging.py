"""Packaging: what a wheel holds, imports without Triton, and the real package `kernels`."""

import shutil
import subprocess
import sys
import zipfile
from importlib import metadata

import pytest
from wheels import CLEAN, ROOT, build, copy_source

import liftcore


def run(code, cwd, **env):
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env={**CLEAN, **env}, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    source = copy_source(tmp_path_factory.mktemp("source") / "liftcore")
    done, built = build(source, tmp_path_factory.mktemp("wheel"), LIFTCORE_CUDA="0")
    assert done.returncode == 0, done.stderr
    return built


def test_the_wheel_holds_the_kernels_and_shadows_nothing(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "liftcore/kernels/lora.py" in names and "liftcore/fiction/prose/harbour.txt" in names
    assert {"liftcore/page/page.css", "liftcore/page/page.js"} <= {*names}
    assert {n.split("/")[0] for n in names} == {
        "liftcore",
        f"liftcore-{liftcore.__version__}.dist-info",
    }
    assert wheel.name.endswith("py3-none-any.whl")
    assert any(n.endswith("LICENSE") for n in names)


def test_no_init_file_in_kernels():
    assert not (ROOT / "kernels" / "__init__.py").exists()


USE = """
import torch, liftcore
from liftcore.kernels.lora import lora_linear
y = lora_linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(1, 3), torch.ones(4, 1), 2.0)
assert y[0, 0] == 9
import kernels
assert hasattr(kernels, "get_kernel"), kernels
from transformers import LlamaForCausalLM
print(liftcore.__file__)
"""


# An editable install of liftcore in this environment must not answer for the one under test.
FORGET = """
import site, sys
sys.meta_path[:] = [f for f in sys.meta_path if "Editable" not in getattr(f, "__name__", "")]
for name in [m for m in sys.modules if m.startswith("__editable__")]:
    del sys.modules[name]
def enter(folder):
    sys.path.insert(0, folder)
    site.addsitedir(folder)
"""


# Not importorskip: the folder kernels/ of the checkout answers for a package that is not there.
needs_kernels = pytest.mark.skipif(
    not [*metadata.Distribution.discover(name="kernels")], reason="needs the package kernels"
)


@needs_kernels
def test_checkout_does_not_shadow_the_package_kernels():
    done = run(USE, ROOT)
    assert done.returncode == 0, done.stderr


@needs_kernels
@pytest.mark.parametrize("layout", ["wheel", "editable", "editable strict", "editable compat"])
def test_installed_layouts_do_not_shadow_it_either(wheel, tmp_path, layout):
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(target)]
    if layout == "wheel":
        command.append(str(wheel))
    else:
        mode = layout.removeprefix("editable").strip()
        source = tmp_path / "source"
        source.mkdir()
        for name in ("kernels", "liftcore"):
            shutil.copytree(ROOT / name, source / name)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source / name)
        command += ["--no-build-isolation", "--editable", str(source)]
        command += ["--config-settings", f"editable_mode={mode}"] if mode else []
    done = subprocess.run(
        command, capture_output=True, text=True, env={**CLEAN, "LIFTCORE_CUDA": "0"}
    )
    assert done.returncode == 0, done.stderr
    done = run(FORGET + f"enter({str(target)!r})\n" + USE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout, "another liftcore was imported"


def test_import_needs_neither_triton_nor_a_gpu_nor_transformers():
    code = """
import sys
for name in ("triton", "transformers", "matplotlib", "peft"):
    sys.modules[name] = None
import liftcore
import liftcore.kernels.lora, liftcore.kernels.head_loss, liftcore.segments
import liftcore.kernels.segment_batch, liftcore.kernels.adamw
liftcore.LiftConfig()
"""
    done = run(code, ROOT, CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 0, done.stderr


def test_every_public_name_exists():
    for name in liftcore.__all__:
        assert getattr(liftcore, name) is not None
    assert callable(liftcore.absorb) and callable(liftcore.accelerate)
    assert liftcore.segments.cut and liftcore.kernels.lora.lora_linear
    with pytest.raises(AttributeError):
        _ = liftcore.no_such_name
