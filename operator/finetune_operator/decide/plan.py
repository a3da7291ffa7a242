"""What a decision is: actions as values, the next status, and when to look again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_operator.api.v1alpha1 import FinetuneJobStatus


@dataclass(frozen=True)
class CreateCluster:
    """Make the output claim, the token's Secret, the ConfigMap and then the RayCluster of an attempt."""

    attempt: int


@dataclass(frozen=True)
class Submit:
    """Hand the driver of an attempt to Ray."""

    attempt: int


@dataclass(frozen=True)
class StopRun:
    """Ask the driver of an attempt for a checkpoint and its end."""

    attempt: int


@dataclass(frozen=True)
class DeleteCluster:
    """Delete this very RayCluster."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteJob:
    """Delete the FinetuneJob itself: its time to live is over."""


Action = CreateCluster | Submit | StopRun | DeleteCluster | DeleteJob


@dataclass(frozen=True)
class Plan:
    """The outcome of a decision. The status says what is, not what the actions will bring about."""

    status: FinetuneJobStatus
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds until the job is to be looked at again, at the latest; None leaves it to events and the resync."""

    def due_within(self, seconds: float) -> Plan:
        """The same plan, looked at again after so many seconds if not sooner."""
        return replace(self, requeue_after=seconds if self.requeue_after is None else min(seconds, self.requeue_after))
