"""A plugin of pytest: how many tests are done, of how many, and which have failed so far, in a file for whoever waits.

pytest -p tests.support.tally
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

VARIABLE = "TEST_TALLY"
"""Environment variable with the path of the file."""


class Tally:
    """Counts tests; with pytest-xdist in the process that hands them out."""

    def __init__(self, path: Path) -> None:
        self.path, self.total, self.done = path, 0, 0
        self.failed: list[str] = []
        self.path.touch()

    def pytest_collection_finish(self, session: Any) -> None:
        self.total = self.total or len(getattr(session, "items", ()))

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        """Each worker of pytest-xdist collects the same tests."""
        self.total = len(ids)

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.done += report.when == "teardown"
        if report.failed:
            self.failed.append(report.nodeid)
        self.write()

    def write(self) -> None:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        self.path.write_text("\n".join([f"{self.done}/{self.total}{failed}", *self.failed]))


def pytest_configure(config: Any) -> None:
    path = os.environ.get(VARIABLE)
    if path and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Tally(Path(path)))


def read(folder: Path, part: str) -> tuple[str, list[str]]:
    """What the newest file of a part counts, and the tests that have failed; nothing before its first test."""
    files = sorted(folder.glob(f"{part}-*.tally"), key=lambda path: path.stat().st_mtime)
    counts, *failed = (files[-1].read_text() if files else "").split("\n")
    return counts, failed
