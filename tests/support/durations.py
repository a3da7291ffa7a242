"""How long the tests took, per folder and file, and the slowest of them, from pytest's XML reports."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree as ET

SLOWEST = 20


def tests(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Folder of tests, name and seconds of each test: setup, call and teardown together."""
    for path in sorted(folder.glob("*.xml")):
        for case in ET.parse(path).iter("testcase"):
            names = case.get("classname", "").split(".")
            file = next((place for place, name in enumerate(names) if name.startswith("test_")), 0) + 1
            name = "::".join([f"{'/'.join(names[:file])}.py", *names[file:], case.get("name", "")])
            yield "/".join(names[:2]), name, float(case.get("time", 0))


def report(folder: Path) -> str:
    """Tables in Markdown; written to durations.md of the folder, too."""
    found = list(tests(folder))
    folders: dict[str, list[float]] = defaultdict(list)
    for place, _, seconds in found:
        folders[place].append(seconds)
    lines = ["| Folder | Tests | Seconds |", "|---|---|---|"]
    lines += [f"| {place} | {len(times)} | {sum(times):.0f} |" for place, times in sorted(folders.items())]
    lines += ["", f"| The {SLOWEST} slowest | Seconds |", "|---|---|"]
    slowest = sorted(found, key=lambda test: -test[2])[:SLOWEST]
    lines += [f"| {name} | {seconds:.1f} |" for _, name, seconds in slowest]
    text = "\n".join(lines)
    (folder / "durations.md").write_text(text + "\n", encoding="utf-8")
    return text
