"""Builds of kernels/csrc for the tests: with CMake, and with the host's compiler alone."""

import fcntl
import re
import shutil
import subprocess
from pathlib import Path

import liftcore

ROOT = Path(liftcore.__file__).resolve().parent.parent
CSRC, HOST = ROOT / "kernels" / "csrc", ROOT / "tests" / "native"
GXX = ["g++", "-std=c++20", "-O1", "-fPIC", "-shared"]


def tools(*names):
    """None, or what is missing."""
    missing = [name for name in names if shutil.which(name) is None]
    return f"{' and '.join(missing)} cannot be found" if missing else None


def once(tmp_path_factory, name, build):
    """A folder filled by build(folder) once for all processes of a test session."""
    base = tmp_path_factory.getbasetemp()
    # Under xdist each process has a folder of its own inside the session's.
    shared = base.parent if base.name.startswith("popen-") else base
    folder = shared / name
    with open(shared / f"{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "done").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            build(folder)
            (folder / "done").touch()
    return folder


def with_cmake(folder):
    """libliftcore_cuda.so for all architectures, and what the compiler said in log.txt."""
    generator = ["-G", "Ninja"] if shutil.which("ninja") else []
    compiler = f"-DCMAKE_CUDA_COMPILER={shutil.which('nvcc')}"
    run(["cmake", *generator, "-S", ROOT, "-B", folder, "-DCMAKE_BUILD_TYPE=Release", compiler])
    log = run(["cmake", "--build", folder, "--parallel", "--verbose"])
    (folder / "log.txt").write_text(log)


def arithmetic(folder):
    """shim.so: segments.h behind C functions."""
    shim = HOST / "segments_shim.cpp"
    run([*GXX, f"-I{CSRC}", "-Wall", "-Wextra", "-Werror", shim, "-o", folder / "shim.so"])


def on_host(folder):
    """libliftcore_cuda.so with the kernels run on the CPU, for pointers of the CPU."""
    say = subprocess.run(
        ["nvcc", "--dryrun", "-x", "cu", "/dev/null", "-o", folder / "x"],
        capture_output=True, text=True,
    )  # fmt: skip
    include = [f"-I{path}" for path in {CSRC, HOST, *re.findall(r'"-I([^"]+)"', say.stderr)}]
    for file in CSRC.glob("*.cu"):
        # kernel<<<grid, block, 0, stream>>>(…) is no C++.
        launch = r"([\w\[\]]+)<<<(.*?)>>>\("
        source = re.sub(launch, r"host::launch(\1, \2)(", file.read_text(), flags=re.S)
        (folder / f"{file.stem}.cpp").write_text('#include "host_cuda.h"\n' + source)
    sources = sorted(folder.glob("*.cpp"))
    for source in sources:
        run([*GXX, *include, "-c", source, "-o", source.with_suffix(".o")])
    objects = [source.with_suffix(".o") for source in sources]
    run([*GXX, *objects, "-o", folder / "libliftcore_cuda.so"])


def run(command):
    """The output of a command; its errors are shown when it fails."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr
