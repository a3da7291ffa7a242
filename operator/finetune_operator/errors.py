"""The operator's errors.

OperatorError
├── InvalidSpecError       the FinetuneJob cannot be run as it is; never retried
├── KubeError              the Kubernetes API refused: status and message
│   ├── NotAllowedError    the operator does not ask it: the administrator's policy forbids what a job wants
│   ├── NameTakenError     an object of the name that a job needs exists, and it is not this job's
│   ├── ConflictError      409 on a write: another client wrote first; reconcile again
│   ├── NotFoundError          404 for an object; the clients turn it into None
│   ├── KindMissingError   404 for a whole kind: its CRD is not installed
│   └── KubeUnavailableError  429, 5xx, time-outs, no connection: the outcome is unknown; try again
└── RayError               the Ray dashboard refused: status and message
    └── RayUnavailableError   no answer, or not the dashboard's: the outcome is unknown; try again

404 on one object and "already exists" are outcomes of the clients, not errors.
"""

from __future__ import annotations


class OperatorError(Exception):
    """Root of the tree."""


class InvalidSpecError(OperatorError):
    """The FinetuneJob cannot be run as it is; the message is for its user."""


class KubeError(OperatorError):
    """The Kubernetes API refused a request."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


class ConflictError(KubeError):
    """Another client wrote the object first."""


class NotAllowedError(KubeError):
    """The administrator's policy does not allow what the pods of a job ask for."""

    def __init__(self, message: str) -> None:
        super().__init__(403, message)


class NameTakenError(KubeError):
    """An object of the name that a job needs exists, and it is not this job's."""

    def __init__(self, message: str) -> None:
        super().__init__(409, message)


class NotFoundError(KubeError):
    """There is no object of that name."""


class KindMissingError(KubeError):
    """The API server does not know the kind: its CRD is not installed."""


class KubeUnavailableError(KubeError):
    """The API server did not answer, or is overloaded: whether a write happened is unknown."""


class RayError(OperatorError):
    """The Ray dashboard refused a request."""


class RayUnavailableError(RayError):
    """The Ray dashboard did not answer: the state of the job is unknown, which is not a failure."""
