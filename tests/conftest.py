"""What all tests share."""

from __future__ import annotations

import os
import signal
from collections import Counter

import pytest
from hypothesis import settings

EXAMPLES = int(os.environ.get("HYPOTHESIS_EXAMPLES", "200"))
"""Of a property that names no number of its own. `make check` tries fewer."""

SLICE = os.environ.get("SLICE")
"""Which of the tests that are `sampled` are quick; without this number all are. `make check` counts commits: each runs others."""

settings.register_profile("bounded", max_examples=EXAMPLES, deadline=None, derandomize=bool(os.environ.get("CI")), database=None)
settings.load_profile("bounded")


def pytest_configure() -> None:
    """Have Ctrl-C end the programs that tests start, as on a terminal: a shell's background job ignores it, and so would they."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of a test that is `sampled`, every n-th case is quick; of a file, every n-th test that is not slow anyway.
    Files with many slow tests come first: workers of pytest-xdist then end at about the same time.
    """
    cases: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if SLICE and sampled is not None and item.get_closest_marker("slow") is None:
            whole, file = item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]
            group = whole if sampled in item.own_markers else file
            if (cases[group] + int(SLICE)) % sampled.args[0]:
                item.add_marker(pytest.mark.slow)
            cases[group] += 1
    slow = Counter(item.path for item in items if item.get_closest_marker("slow") or item.get_closest_marker("sampled"))
    items.sort(key=lambda item: -slow[item.path])
