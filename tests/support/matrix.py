"""The table of what each family of models was seen to do, from the reports of the tests named `family-method-property`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MARKS = {"passed": "✓", "failed": "✗", "error": "✗"}
"""Outcome of a test → its mark. A test that did not run has none."""


def table(stats: Mapping[str, Iterable[Any]]) -> list[str]:
    """Lines of the table, a row for each family and method and a column for each property; none when no such test ran."""
    cells: dict[str, dict[str, str]] = {}
    for outcome, mark in MARKS.items():
        for report in stats.get(outcome, ()):
            named = re.search(r"::test_family\[(\w+-\w+)-([\w-]+)\]$", getattr(report, "nodeid", ""))
            if named:
                cells.setdefault(named[1], {})[named[2]] = mark
    columns = list(dict.fromkeys(name for row in cells.values() for name in row))
    width = max(map(len, cells), default=0)
    lines = [" ".join((" " * width, *columns))] if cells else []
    return lines + [
        " ".join((name.ljust(width), *(row.get(column, "–").center(len(column)) for column in columns)))
        for name, row in sorted(cells.items())
    ]
