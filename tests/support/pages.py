"""The pages of README, docs/ and the trainer, and their blocks of commands.

A block is run by tests/packaging/test_commands.py, unless the line above says otherwise:

    <!-- not run: why -->
    <!-- from tests/data/pages/running.txt -->      what it shows is in that file
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]

_BLOCK = re.compile(
    r"(?:^ *<!-- (?P<mark>[^\n]+) -->\n)?^ *```(?P<kind>sh|console|python)\n(?P<text>.*?)^ *```", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A block of commands of a page."""

    page: str
    kind: str
    """sh, console (what is typed after `$`, and what is printed) or python."""
    text: str
    mark: str
    """The comment above it."""

    @property
    def typed(self) -> list[str]:
        """The lines that are typed, without comments; a backslash leads on to the next line."""
        lines = self.text.replace("\\\n", " ").splitlines()
        if self.kind == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        return [re.split(r"(?:^|\s+)#", line)[0].strip() for line in lines]

    def __str__(self) -> str:
        first = self.text.strip().splitlines()[0]
        return f"{self.page}: {first[:40]}"


def pages() -> list[str]:
    """Pages that people read, by their place in the repository."""
    found = [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "trainer_image" / "README.md",
        *ROOT.glob("examples/*/*.md"),
    ]
    return sorted(path.relative_to(ROOT).as_posix() for path in found)


def blocks(page: str) -> Iterator[Block]:
    """The blocks of commands of a page."""
    for found in _BLOCK.finditer((ROOT / page).read_text(encoding="utf-8")):
        yield Block(page, found["kind"], found["text"], found["mark"] or "")


def all_blocks() -> list[Block]:
    """Those of all pages."""
    return [block for page in pages() for block in blocks(page)]
