"""What a decision is: actions as values, the next status, and when to look again."""

from __future__ import annotations

from dataclasses import dataclass

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
class DeleteCluster:
    """Delete this very RayCluster."""

    name: str
    uid: str


Action = CreateCluster | Submit | DeleteCluster


@dataclass(frozen=True)
class Plan:
    """The outcome of a decision. The status says what is, not what the actions will bring about."""

    status: FinetuneJobStatus
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds until the job is to be looked at again, at the latest; None leaves it to events and the resync."""
