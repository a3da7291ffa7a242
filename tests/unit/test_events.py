"""What is worth an event, and how it is named."""

from __future__ import annotations

import pytest
from tests.support.builders import NOW, UID, begun, make_progress

from finetune_operator.api.v1alpha1 import FinetuneJobStatus, Phase, Reason
from finetune_operator.desired.events import build_event, news
from finetune_operator.status import progress_status

METADATA = {"name": "demo", "namespace": "team", "uid": UID}


def status(phase: Phase, reason: Reason, restarts: int = 0, **changes: object) -> FinetuneJobStatus:
    progress = progress_status(make_progress(restarts=restarts), None, NOW)
    return begun(phase, reason=str(reason), progress=progress, **changes)


RUNNING = status(Phase.RUNNING, Reason.TRAINING_RUNNING)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        (RUNNING, RUNNING, []),
        (status(Phase.PROVISIONING, Reason.CLUSTER_STARTING), RUNNING, ["TrainingRunning"]),
        (status(Phase.RUNNING, Reason.TRAINING_STARTING), RUNNING, []),
        (RUNNING, status(Phase.RUNNING, Reason.STALLED), ["Stalled"]),
        (status(Phase.RUNNING, Reason.STALLED), RUNNING, []),
        (
            status(Phase.PROVISIONING, Reason.CLUSTER_STARTING),
            status(Phase.PROVISIONING, Reason.UNSCHEDULABLE),
            ["Unschedulable"],
        ),
        (status(Phase.PENDING, Reason.CLAIM_NOT_FOUND), status(Phase.PENDING, Reason.ACCEPTED), ["Accepted"]),
        (RUNNING, status(Phase.RUNNING, Reason.TRAINING_RUNNING, restarts=1), ["WorkerLost"]),
        (RUNNING, status(Phase.SUCCEEDED, Reason.COMPLETED, restarts=1), ["Completed", "WorkerLost"]),
        (
            status(Phase.RUNNING, Reason.TRAINING_RUNNING, restarts=2),
            status(Phase.RUNNING, Reason.TRAINING_RUNNING, restarts=1, attempt=2),
            ["WorkerLost"],
        ),
    ],
    ids=[
        "nothing new",
        "a phase",
        "an ordinary reason",
        "a trouble",
        "its end",
        "a pod's trouble",
        "what was missing has come",
        "a restart",
        "a restart and the end at once",
        "a restart in another attempt",
    ],
)
def test_changes_of_phase_troubles_and_restarts_are_told(old: FinetuneJobStatus, new: FinetuneJobStatus, told: list[str]) -> None:
    assert [item.reason for item in news(old, new)] == told


@pytest.mark.parametrize(
    ("phase", "reason", "kind"),
    [
        (Phase.FAILED, Reason.TRAINING_FAILED, "Warning"),
        (Phase.RETRYING, Reason.RETRYING, "Warning"),
        (Phase.PROVISIONING, Reason.IMAGE_PULL_FAILED, "Warning"),
        (Phase.PENDING, Reason.CLAIM_NOT_FOUND, "Warning"),
        (Phase.SUSPENDED, Reason.SUSPENDED_BY_USER, "Normal"),
        (Phase.QUEUED, Reason.QUEUED, "Normal"),
        (Phase.SUCCEEDED, Reason.COMPLETED, "Normal"),
    ],
)
def test_trouble_is_a_warning(phase: Phase, reason: Reason, kind: str) -> None:
    assert build_event(METADATA, status(phase, reason), NOW)["type"] == kind


def test_each_restart_has_an_event_of_its_own_and_a_repetition_has_the_same_name() -> None:
    names = []
    for restarts in (1, 1, 2):
        (told,) = news(RUNNING, status(Phase.RUNNING, Reason.TRAINING_RUNNING, restarts=restarts))
        assert f"restart {restarts}" in str(told.message)
        names.append(build_event(METADATA, told, NOW)["metadata"]["name"])
    assert names[0] == names[1] != names[2]
