"""Collect the warnings that a run logs, for its report."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def listen() -> Iterator[list[str]]:
    """Collect the trainer's warnings until the end of the block, each once."""
    heard: list[str] = []

    class Ear(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.getMessage() not in heard:
                heard.append(record.getMessage())

    ear, own = Ear(logging.WARNING), logging.getLogger("finetune_trainer")
    own.addHandler(ear)
    try:
        yield heard
    finally:
        own.removeHandler(ear)
