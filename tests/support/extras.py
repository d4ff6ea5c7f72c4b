"""What a test needs of the optional packages: a GPU machine's image has few of them."""

import importlib.util

import pytest


def needs(*packages: str) -> pytest.MarkDecorator:
    """A mark that skips where one of the packages is not installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"needs {', '.join(missing)}")
