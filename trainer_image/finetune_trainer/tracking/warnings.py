"""Collect the warnings that a run logs, for its report."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from types import TracebackType


class WarningCollector(logging.Handler):
    """Collects the trainer's warnings, each once, while its block runs."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def __enter__(self) -> Self:
        logging.getLogger("finetune_trainer").addHandler(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        logging.getLogger("finetune_trainer").removeHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message of a record, unless it is there already."""
        if record.getMessage() not in self.messages:
            self.messages.append(record.getMessage())
