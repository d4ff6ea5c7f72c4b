"""The embedded model for the tests that need it."""

import pytest

from liftcore import embedded


def skip_without():
    """Skips a test where the embedded model is neither installed nor converted."""
    if not embedded.is_available():
        pytest.skip(f"the embedded model cannot be had here: {embedded.INSTALL}")


def skip_without_its_file():
    """Skips a test of the conversion where only its result is there."""
    try:
        embedded.gguf_file()
    except embedded.LiftError as error:
        pytest.skip(str(error))
    pytest.importorskip("gguf")
