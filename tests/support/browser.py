"""A real browser without a window, for the tests of the page."""

import os
import shutil
from contextlib import contextmanager

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Where it is set, as .ci/run does, what is missing is a failure and no skip.
REQUIRED = "LIFTCORE_BROWSER"


def _without(reason):
    if os.environ.get(REQUIRED):
        pytest.fail(reason)
    pytest.skip(reason)


@contextmanager
def browser():
    """A Chromium that Playwright drives; skips the test where one of them is missing."""
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        _without("no Chromium on the PATH: apt-get install chromium")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        _without("needs playwright: pip install playwright")
    with sync_playwright() as driver:
        # Root, as in containers, has no sandbox.
        opened = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            yield opened
        finally:
            opened.close()
