"""The result of a decision: actions as values, the next status, and when to look again."""

from __future__ import annotations

from dataclasses import dataclass, replace

from finetune_operator.api.v1alpha1 import FinetuneJobStatus


@dataclass(frozen=True)
class CreateCluster:
    """Make the output claim, the token's Secret, the ConfigMap and then the RayCluster of an attempt."""

    attempt: int


@dataclass(frozen=True)
class CreateFetchPod:
    """Make the output claim, and then the pod that fetches what the job names by addresses."""

    attempt: int


@dataclass(frozen=True)
class DeletePod:
    """Delete the pod with this UID."""

    name: str
    uid: str


@dataclass(frozen=True)
class Submit:
    """Submit the driver of an attempt to Ray."""

    attempt: int


@dataclass(frozen=True)
class StopRun:
    """Ask the driver of an attempt to write a checkpoint and end."""

    attempt: int


@dataclass(frozen=True)
class DeleteCluster:
    """Delete the RayCluster with this UID."""

    name: str
    uid: str


@dataclass(frozen=True)
class DeleteJob:
    """Delete the FinetuneJob itself: its time to live is over."""


Action = CreateCluster | CreateFetchPod | DeletePod | Submit | StopRun | DeleteCluster | DeleteJob


@dataclass(frozen=True)
class Plan:
    """The outcome of a decision. The status describes the present, not the effect of the actions."""

    status: FinetuneJobStatus
    actions: tuple[Action, ...] = ()
    requeue_after: float | None = None
    """Seconds until the job is to be looked at again, at the latest; None leaves it to events and the resync."""

    def due_within(self, seconds: float) -> Plan:
        """The same plan, looked at again after so many seconds if not sooner."""
        return replace(self, requeue_after=seconds if self.requeue_after is None else min(seconds, self.requeue_after))
