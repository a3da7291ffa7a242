"""Why something cannot be fetched: for good, or for now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from finetune_trainer.fetch.report import FetchReason

What = Literal["dataset", "model"]

_MISSING: dict[What, FetchReason] = {"dataset": "DatasetNotFound", "model": "ModelNotFound"}
_DENIED: dict[What, FetchReason] = {"dataset": "DatasetAccessDenied", "model": "ModelAccessDenied"}


class FetchError(Exception):
    """A failure that is explained to the user in a message."""

    def __init__(self, reason: FetchReason, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.retryable = retryable


@dataclass
class Temporary(Exception):  # noqa: N818 - it is no failure yet: the next try may succeed
    """A lost connection, or a server that asks to come again."""

    message: str
    after: float | None = None
    """Seconds after which the server wants to be asked again."""

    def __str__(self) -> str:
        return self.message


class Changed(Exception):  # noqa: N818 - it is no failure yet: the fetch begins again with the new version
    """The file has changed at its origin while it was fetched."""


def missing(what: What, message: str) -> FetchError:
    """There is no such file, data set or model."""
    return FetchError(_MISSING[what], message)


def denied(what: What, message: str) -> FetchError:
    """It may not be read with this token, or without one."""
    return FetchError(_DENIED[what], message)
