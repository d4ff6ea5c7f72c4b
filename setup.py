"""Maps kernels/ to liftcore.kernels and builds the CUDA library. Metadata is in pyproject.toml.

kernels/ has no __init__.py: a top-level package `kernels` would shadow Hugging Face's package
of that name, which transformers imports. So the packages are named here and never discovered.

LIFTCORE_CUDA=0 builds no library, =1 insists on it; without it the library is built where nvcc
and cmake are found, and a build that fails leaves a pure wheel and a warning.
LIFTCORE_CUDA_ARCHITECTURES="90" builds for these architectures alone.
"""

import os
import shutil
import subprocess
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError, PlatformError

ROOT = Path(__file__).resolve().parent
LIBRARY = "libliftcore_cuda.so"
PACKAGES = (
    "cli", "corpus", "drop_in", "export", "fiction", "kernels", "layers", "objectives", "page",
    "questions", "reading", "training",
)  # fmt: skip


def compiler() -> str | None:
    """nvcc from CUDACXX, the PATH or CUDA_HOME."""
    homes = [os.environ[name] for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    candidates = [os.environ.get("CUDACXX"), "nvcc", *(f"{home}/bin/nvcc" for home in homes)]
    return next(filter(None, (shutil.which(name) for name in candidates if name)), None)


def extensions() -> list[Extension]:
    wish = os.environ.get("LIFTCORE_CUDA", "")
    if wish not in ("", "0", "1"):
        raise PlatformError(f"LIFTCORE_CUDA={wish!r}: not 0, 1 or unset")
    missing = [name for name, path in (("nvcc", compiler()), ("cmake", shutil.which("cmake")))
               if path is None]  # fmt: skip
    if wish == "1" and missing:
        raise PlatformError(f"LIFTCORE_CUDA=1, but {' and '.join(missing)} cannot be found")
    if wish == "0" or missing:
        return []
    return [Extension("liftcore.kernels.libliftcore_cuda", sources=[], optional=wish != "1")]


class BuildLibrary(build_ext):
    """CMake in place of the C compiler."""

    def get_ext_filename(self, fullname):
        return str(Path(*fullname.split(".")[:-1], LIBRARY))

    def build_extension(self, ext):
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        folder = Path(self.build_temp).resolve() / "cuda"
        configure = ["cmake", "-S", str(ROOT), "-B", str(folder), "-DCMAKE_BUILD_TYPE=Release"]
        configure.append(f"-DCMAKE_CUDA_COMPILER={compiler()}")
        if shutil.which("ninja"):
            configure += ["-G", "Ninja"]
        if wanted := os.environ.get("LIFTCORE_CUDA_ARCHITECTURES"):
            configure.append(f"-DLIFTCORE_CUDA_ARCHITECTURES={wanted.replace(' ', ';')}")
        # What an earlier build left may be of another compiler or of other sources.
        shutil.rmtree(folder, ignore_errors=True)
        target.unlink(missing_ok=True)
        try:
            subprocess.run(configure, check=True)
            subprocess.run(["cmake", "--build", str(folder), "--parallel"], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(f"the CUDA library could not be built: {error}") from error
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(folder / LIBRARY, target)

    def get_output_mapping(self):
        # An optional library that failed is no output.
        return {k: v for k, v in super().get_output_mapping().items() if Path(k).is_file()}

    def get_outputs(self):
        return [name for name in super().get_outputs() if Path(name).is_file()]


class Wheel(bdist_wheel):
    """py3-none-<platform> with the library, which no Python version changes, and pure without."""

    def run(self):
        if not self.skip_build:
            self.run_command("build")
            self.skip_build = True  # what is built decides the tag, and is not built again
        if not self.get_finalized_command("build_ext").get_outputs():
            self.distribution.ext_modules = []
            self.root_is_pure = True
        super().run()

    def get_tag(self):
        python, abi, platform = super().get_tag()
        return (python, abi, platform) if self.root_is_pure else ("py3", "none", platform)


setup(
    packages=[
        "liftcore",
        *(f"liftcore.{name}" for name in PACKAGES),
    ],
    package_dir={"liftcore.kernels": "kernels"},
    package_data={
        "liftcore": ["py.typed"],
        "liftcore.fiction": ["prose/*.txt"],
        "liftcore.page": ["page.css", "page.js"],
        "liftcore.questions": ["own_words_*.json"],
        "liftcore.kernels": ["tiles.*.json"],
    },
    include_package_data=False,  # MANIFEST.in is for the source distribution alone
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLibrary, "bdist_wheel": Wheel},
)
