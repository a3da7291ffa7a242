"""Phases of a FinetuneJob, in a module of their own: a command line needs them at once, and the models of pydantic seldom."""

from __future__ import annotations

from enum import StrEnum


class Phase(StrEnum):
    """Where a job stands, in one word."""

    PENDING = "Pending"
    QUEUED = "Queued"
    PROVISIONING = "Provisioning"
    RUNNING = "Running"
    SUSPENDING = "Suspending"
    SUSPENDED = "Suspended"
    RETRYING = "Retrying"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"
    CANCELLED = "Cancelled"


TERMINAL = frozenset({Phase.SUCCEEDED, Phase.FAILED, Phase.CANCELLED})
"""Phases that never change again."""
