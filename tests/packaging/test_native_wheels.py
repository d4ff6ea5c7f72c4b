"""The wheel with a CUDA compiler, without one, with a broken one, and as LIFTCORE_CUDA says."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from native_build import tools
from wheels import CLEAN, build, copy_source

LIBRARY = "liftcore/kernels/libliftcore_cuda.so"
ONE = {"LIFTCORE_CUDA_ARCHITECTURES": "90"}
needs_cuda = pytest.mark.skipif(
    tools("nvcc", "cmake") is not None, reason=str(tools("nvcc", "cmake"))
)
needs_cmake = pytest.mark.skipif(tools("cmake") is not None, reason=str(tools("cmake")))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("native-source") / "liftcore")


@pytest.fixture
def broken(tmp_path):
    """An environment whose nvcc fails."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    (folder / "nvcc").chmod(0o755)
    return {"PATH": f"{folder}:{os.environ['PATH']}", "CUDACXX": ""}


def without_nvcc(tmp_path):
    """An environment with the programs of this PATH, but for nvcc."""
    folder = tmp_path / "programs"
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep):
        for program in os.scandir(place) if os.path.isdir(place) else ():
            if program.name != "nvcc" and not (folder / program.name).is_symlink():
                (folder / program.name).symlink_to(program.path)
    nowhere = dict.fromkeys(("CUDA_HOME", "CUDA_PATH", "CUDACXX"), "")
    return {"PATH": str(folder), **nowhere}


def assert_pure(wheel):
    assert wheel.name.endswith("-py3-none-any.whl")
    archive = zipfile.ZipFile(wheel)
    assert not [n for n in archive.namelist() if n.endswith((".so", ".cu", ".h"))]
    record = next(n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
    assert b"Root-Is-Purelib: true" in archive.read(record)


@needs_cuda
def test_with_a_compiler_the_wheel_has_the_library(source, tmp_path):
    done, wheel = build(source, tmp_path / "out", LIFTCORE_CUDA="1", **ONE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert LIBRARY in names and not [n for n in names if n.endswith((".cu", ".h"))]
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = "from liftcore.kernels import native; print(native.status()[1])"
    env = {**CLEAN, "PYTHONPATH": str(tmp_path / "site"), "CUDA_VISIBLE_DEVICES": ""}
    said = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
    )
    assert f"{tmp_path / 'site' / LIBRARY} is loaded" in said.stdout, said.stdout + said.stderr


def test_without_a_compiler_the_wheel_is_pure(source, tmp_path):
    done, wheel = build(source, tmp_path / "out", **without_nvcc(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_pure(wheel)


@needs_cmake
def test_a_broken_compiler_falls_back_with_a_warning(source, tmp_path, broken):
    done, wheel = build(source, tmp_path / "out", **broken)
    assert done.returncode == 0, done.stderr
    assert "the CUDA library could not be built" in done.stdout + done.stderr
    assert_pure(wheel)


@needs_cmake
def test_strict_fails_with_a_broken_compiler(source, tmp_path, broken):
    done, wheel = build(source, tmp_path / "out", LIFTCORE_CUDA="1", **broken)
    assert done.returncode != 0 and wheel is None
    assert "the CUDA library could not be built" in done.stdout + done.stderr


def test_strict_fails_without_a_compiler(source, tmp_path):
    done, wheel = build(source, tmp_path / "out", LIFTCORE_CUDA="1", **without_nvcc(tmp_path))
    assert done.returncode != 0 and wheel is None
    assert "nvcc" in done.stdout + done.stderr


def test_off_is_pure_whatever_there_is(source, tmp_path, broken):
    done, wheel = build(source, tmp_path / "out", LIFTCORE_CUDA="0", **broken)
    assert done.returncode == 0 and "could not be built" not in done.stdout + done.stderr
    assert_pure(wheel)


@needs_cuda
def test_an_editable_install_has_the_library_beside_the_code(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    done = subprocess.run(
        [*command, "--target", str(target), "--editable", str(copy)],
        capture_output=True, text=True, env={**CLEAN, **ONE},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (copy / "kernels" / "libliftcore_cuda.so").is_file()


@needs_cuda
def test_the_source_distribution_has_what_the_build_needs(source, tmp_path):
    copy = shutil.copytree(source, tmp_path / "copy")
    done = subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; print(b.build_sdist('.'))"],
        cwd=copy, capture_output=True, text=True, env={**CLEAN, "LIFTCORE_CUDA": "0"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    shutil.unpack_archive(next(copy.glob("*.tar.gz")), tmp_path / "unpacked")
    (root,) = (tmp_path / "unpacked").iterdir()
    assert (root / "CMakeLists.txt").is_file()
    names = {p.name for p in (source / "kernels" / "csrc").iterdir()}
    assert names == {p.name for p in (root / "kernels" / "csrc").iterdir()}
