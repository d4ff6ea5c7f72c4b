"""A pytest plugin: a row for each test as it ends, and a run that goes on where one was cut off.

python -m pytest -p bench.test_rows --rows tests.jsonl tests/gpu
python -m pytest -p bench.test_rows --rows tests.jsonl --resume tests/gpu
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.common import append, read_lines


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rows", type=Path, help="a JSON-lines file with a row for each test")
    parser.addoption("--resume", action="store_true", help="leave out what passed in --rows")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--rows")
    # A worker of xdist reports to the process that started it.
    if file is not None and "PYTEST_XDIST_WORKER" not in os.environ:
        if not config.getoption("--resume"):
            file.unlink(missing_ok=True)
        config.pluginmanager.register(_Writer(file))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    file = config.getoption("--rows")
    if file is None or not config.getoption("--resume"):
        return
    passed = {row["test"] for row in read_lines(file) if row["outcome"] == "passed"}
    gone = [item for item in items if item.nodeid in passed]
    items[:] = [item for item in items if item.nodeid not in passed]
    config.hook.pytest_deselected(items=gone)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED and session.config.option.resume:
        session.exitstatus = pytest.ExitCode.OK  # all had passed


class _Writer:
    def __init__(self, file: Path) -> None:
        self.file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The call of a test, or a set-up that failed or skipped."""
        if report.when != "call" and report.passed:
            return
        text = str(report.longrepr[2]) if isinstance(report.longrepr, tuple) else ""
        if report.failed:
            text = report.longreprtext[-2000:]
        row = {"test": report.nodeid, "outcome": report.outcome, "seconds": report.duration}
        append(self.file, {**row, "why": text} if text else row)
