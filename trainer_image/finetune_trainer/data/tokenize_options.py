"""How data files are tokenised."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_trainer.data import jsonl


@dataclass(frozen=True)
class TokenizeOptions:
    """By how many processes, in which pieces, and how progress is shown."""

    processes: int = 1
    small_bytes: int = 2 * 2**20
    """Files up to this size, some five thousand rows, are tokenised in less time than a second process takes to start."""
    piece_bytes: int = jsonl.PIECE_BYTES
    quiet_seconds: float = 2.0
    """Nothing is shown before this time."""
    line_seconds: float = 5.0
    """Time between two lines that show the progress."""
