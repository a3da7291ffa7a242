"""Whose word is taken for the end of a run."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import make_observed, make_pod, make_progress

from finetune_operator.api.reasons import Problem, Reason
from finetune_operator.decide.failures import explain_failure, explain_loss
from finetune_operator.observed import Observed

OOM = make_pod("w-a", reason=Reason.WORKER_OOM_KILLED, message="container ray-worker ran out of its memory limit of 4Gi")
EVICTED = make_pod("w-b", reason=Reason.EVICTED, message="Evicted: The node was low on resource: memory.")
PENDING = make_pod("w-c", reason=Reason.UNSCHEDULABLE, message="0/3 nodes are available")


def failed(reason: str | None = None, **parts: Any) -> Observed:
    failure = {"failure": {"reason": reason, "message": "the trainer's words"}} if reason else {}
    return make_observed("FAILED", ray_message="Ray's words", progress=make_progress(**failure), **parts)


@pytest.mark.parametrize(
    ("observed", "reason", "message"),
    [
        (failed("DatasetInvalid", lost=(OOM,)), "DatasetInvalid", "the trainer's words"),
        (failed("LossNotFinite", pods=(EVICTED,)), "LossNotFinite", "the trainer's words"),
        (failed("WorkerOOMKilled"), "WorkerOOMKilled", "the trainer's words"),
        (failed("WorkerLost"), "WorkerLost", "the trainer's words"),
        (failed("WorkerLost", lost=(EVICTED,)), "Evicted", f"pod w-b: {EVICTED.problem.message}; the trainer's words"),
        (
            failed("TrainingFailed", lost=(EVICTED, OOM)),
            "WorkerOOMKilled",
            f"pod w-a: {OOM.problem.message}; the trainer's words",
        ),
        (failed("TrainingFailed", pods=(PENDING,)), "TrainingFailed", "the trainer's words"),
        (failed(lost=(OOM,)), "WorkerOOMKilled", f"pod w-a: {OOM.problem.message}"),
        (failed(), "TrainingFailed", "Ray's words"),
    ],
    ids=["rows", "loss", "Ray's OOM", "lost", "lost and evicted", "OOM first", "a pod that waits", "pod alone", "Ray alone"],
)
def test_the_trainers_own_word_then_the_pods_then_rays(observed: Observed, reason: str, message: str) -> None:
    assert explain_failure(observed) == Problem(Reason(reason), message)


def test_what_a_pod_waits_for_is_not_what_it_died_of() -> None:
    assert explain_loss(make_observed(pods=(PENDING,))) == ""
    assert explain_loss(make_observed(pods=(PENDING,), lost=(EVICTED,))) == f": pod w-b: {EVICTED.problem.message}"
