"""Text of others: what clusters, images, webhooks and users write. All of it passes through here before it reaches a status,
an event or a log, so that it is bounded, and so that none of it looks like the operator's own.
"""

from __future__ import annotations

import copy
import logging
from typing import Any

from finetune_operator.constants import MESSAGE_LIMIT

LOG_LIMIT = 8192
"""Longest text of one log record in characters; the middle of a longer one is left out."""


def clip(text: str, limit: int = MESSAGE_LIMIT) -> str:
    """Limit a text to a length; the end is kept, since the last lines of an error are the most useful."""
    text = "".join(char for char in text if char.isprintable() or char in "\n\t").strip()
    return text if len(text) <= limit else "…" + text[-(limit - 1) :]


def clip_all(value: Any) -> Any:
    """A JSON value with every string in it limited as above."""
    if isinstance(value, dict):
        return {clip(key): clip_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [clip_all(item) for item in value]
    return clip(value) if isinstance(value, str) else value


def one_line(text: str, limit: int = LOG_LIMIT) -> str:
    """A text as a single line: what would end the line, or steer a terminal, is written as an escape sequence."""
    if len(text) > limit:
        text = f"{text[: limit // 2]} … {text[-limit // 2 :]}"
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class OneLineFormatter(logging.Formatter):
    """Formats a record such that no text within it can begin a line that looks like another record.

    The message is one line. The lines of a traceback, which end with the text of an exception, are indented behind a bar.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record, without what another formatter has stored in it."""
        record = copy.copy(record)
        record.exc_text = None
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """The first line."""
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        """The traceback."""
        return _indent(super().formatException(ei))

    def formatStack(self, stack_info: str) -> str:  # noqa: N802 - logging's name
        """The stack."""
        return _indent(stack_info)


def _indent(text: str) -> str:
    return "\n".join(f"  | {one_line(line)}" for line in text.split("\n"))
