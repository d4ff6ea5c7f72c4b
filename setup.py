"""Maps kernels/ to liftcore.kernels. All other metadata is in pyproject.toml.

kernels/ has no __init__.py: a top-level package `kernels` would shadow Hugging Face's package
of that name, which transformers imports. So the packages are named here and never discovered.
"""

from setuptools import setup

setup(
    packages=["liftcore", "liftcore.kernels"],
    package_dir={"liftcore.kernels": "kernels"},
    package_data={"liftcore": ["prose/*.txt"]},
)
