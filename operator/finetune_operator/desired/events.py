"""Events: one for each change of phase and each problem, named so that a repetition is refused instead of doubled."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from finetune_operator.api.reasons import NEEDS_ATTENTION
from finetune_operator.api.v1alpha1 import FinetuneJobStatus, Phase, Reason
from finetune_operator.constants import API_VERSION, FIELD_MANAGER, KIND
from finetune_operator.desired.naming import short_uid

EVENT_MESSAGE_LIMIT = 1024
"""The API server refuses longer messages."""


def reportable_changes(old: FinetuneJobStatus, new: FinetuneJobStatus) -> Iterator[FinetuneJobStatus]:
    """The changes of the status that need an event, each as the status for the event."""
    needs_event = new.reason in NEEDS_ATTENTION or new.phase is Phase.PENDING
    if new.phase != old.phase or (new.reason != old.reason and needs_event):
        yield new
    if _restarts(new) > (_restarts(old) if new.attempt == old.attempt else 0):
        step = new.checkpoint.step if new.checkpoint else 0
        message = f"Ray restarted all workers after one was lost, from step {step}; it is restart {_restarts(new)}"
        yield new.model_copy(update={"reason": Reason.WORKER_LOST, "message": message})


def _restarts(status: FinetuneJobStatus) -> int:
    return (status.progress and status.progress.restarts) or 0


def build_event(metadata: dict[str, Any], status: FinetuneJobStatus, now: datetime) -> dict[str, Any]:
    """The event about the phase that a job has just entered, from the job's metadata as the API server has it."""
    name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    parts = [name, short_uid(uid), str(status.attempt or 0), str(status.phase), str(status.reason)]
    if status.reason == Reason.WORKER_LOST:
        parts.append(str(_restarts(status)))
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": ".".join(parts).lower(), "namespace": namespace},
        "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, "name": name, "namespace": namespace, "uid": uid},
        "type": "Warning" if status.phase is Phase.FAILED or status.reason in NEEDS_ATTENTION else "Normal",
        "reason": str(status.reason),
        "message": (status.message or "")[:EVENT_MESSAGE_LIMIT],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }
