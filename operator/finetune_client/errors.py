"""What a user can do something about: one line that says what is wrong, one that says what to do, details on demand."""

from __future__ import annotations


def look_at(name: str) -> str:
    """The hint that a job's page says more."""
    return f"`finetune status {name}` tells why, and what to do"


def one_line(text: str) -> str:
    """A text of others on one line, without what steers a terminal."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


class ClientError(Exception):
    """A command, or a call of `FinetuneClient`, cannot be carried out."""

    def __init__(self, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message)
        self.message = message
        """What is wrong, in one line."""
        self.hint = hint
        """What to do next, in one line."""
        self.details = details
        """More of it, for ``-v``; may have several lines."""


class NotLoggedInError(ClientError):
    """There is no kubeconfig, it cannot be read, or it has no usable login."""


class UnreachableError(ClientError):
    """The API server does not answer; what has become of a request is unknown."""


class RefusedError(ClientError):
    """The API server refuses a request."""

    def __init__(self, status: int, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message, hint, details)
        self.status = status
        """The HTTP status."""


class ForbiddenError(RefusedError):
    """The user may not do that (403), or is not known (401)."""


class MissingKindError(RefusedError):
    """The cluster does not know the kind: a CRD is not installed."""


class MissingError(RefusedError):
    """There is no such object."""


class ExistsError(RefusedError):
    """There is an object of that name already."""


class JobEndedError(ClientError):
    """The job has ended, or has not, so that the command has no meaning."""


class NotInTimeError(ClientError):
    """The job has not reached the state within the time that was given."""


class NoLogError(ClientError):
    """The log is not there (any more); the hint says where else to look."""


class LogGoneError(NoLogError):
    """The Ray cluster of an attempt is gone, and with it what the dashboard had; the run keeps a log on its claim."""

    def __init__(self, attempt: int, message: str, hint: str = "", details: str = "") -> None:
        super().__init__(message, hint, details)
        self.attempt = attempt
        """The number of the attempt."""
