"""Events: one for each change of phase, named so that a repetition is refused instead of doubled."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJobStatus, Phase
from finetune_operator.constants import API_VERSION, FIELD_MANAGER, KIND
from finetune_operator.desired.naming import short_uid

EVENT_MESSAGE_LIMIT = 1024
"""The API server refuses longer messages."""


def build_event(metadata: dict[str, Any], status: FinetuneJobStatus, now: datetime) -> dict[str, Any]:
    """The event about the phase that a job has just entered, from the job's metadata as the API server has it."""
    name, namespace, uid = metadata["name"], metadata["namespace"], metadata["uid"]
    time = now.strftime("%Y-%m-%dT%H:%M:%SZ")
    parts = [name, short_uid(uid), str(status.attempt or 0), str(status.phase), str(status.reason)]
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": ".".join(parts).lower(), "namespace": namespace},
        "involvedObject": {"apiVersion": API_VERSION, "kind": KIND, "name": name, "namespace": namespace, "uid": uid},
        "type": "Warning" if status.phase is Phase.FAILED or _waits_for_user(status) else "Normal",
        "reason": str(status.reason),
        "message": (status.message or "")[:EVENT_MESSAGE_LIMIT],
        "source": {"component": FIELD_MANAGER},
        "firstTimestamp": time,
        "lastTimestamp": time,
        "count": 1,
    }


def _waits_for_user(status: FinetuneJobStatus) -> bool:
    return any(condition.type == "Validated" and condition.status == "False" for condition in status.conditions)
