"""Tokenised rows in memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Examples:
    """Token ids of all rows, one row after the other."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    """Where each row starts in `tokens`, and where the last one ends: one longer than there are rows."""
    first: NDArray[np.int64]
    """First supervised token of each row, counted from the row's start; at least 1, since a token is predicted from
    the one before it."""
    last: NDArray[np.int64]
    """One past the last supervised token of each row, counted from the row's start."""
    lines: NDArray[np.int64]
    """Line of each row in its file, from 1."""
    name: str
    """The file as the user wrote it."""
    highest: int
    """The highest token id."""
    digest: str = ""
    """SHA-256, in hex, of all fields above except lines and name; empty for rows that are not on disk."""
    asked: tuple[str, str] | None = None
    """Instruction and context of the first row that has them, one whose prompt is not cut if there is any; None: there are
    only texts."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, prompt and response."""
        lengths: NDArray[np.int64] = self.starts[1:] - self.starts[:-1]
        return lengths

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Tokens of each row that count in the loss."""
        counts: NDArray[np.int64] = np.maximum(self.last - self.first, 0)
        return counts

    def row(self, index: int) -> NDArray[np.int32]:
        """Token ids of one row."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]

    def place(self, index: int) -> str:
        """File and line of one row, in the form `data.jsonl:17`."""
        return f"{self.name}:{self.lines[index]}"


@dataclass(frozen=True)
class Encoded:
    """Tokenised rows, and which rows were refused or cut."""

    examples: Examples
    refused: tuple[tuple[int, str], ...]
    """Lines of the rows that are too long while `truncation` is off, each with the reason; they are not in `examples`."""
    cut_prompts: tuple[int, ...]
    """Lines of the rows whose prompt was cut."""
    cut_responses: tuple[int, ...]
    """Lines of the rows whose response, or whose text, was cut."""
