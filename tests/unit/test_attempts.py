"""Retries and suspensions, step by step: what is stored, what is done, and when it is looked at again."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from tests.support.builders import (
    CLUSTER_UID,
    NOW,
    UID,
    finished_progress,
    make_cluster,
    make_job,
    make_observed,
    make_pod,
    make_progress,
)

from finetune_operator.api.v1alpha1 import FinetuneJob, Phase, Reason
from finetune_operator.constants import STOP_GRACE_SECONDS
from finetune_operator.decide import CreateCluster, DeleteCluster, Plan, StopRun, Submit, decide
from finetune_operator.observed import Observed, RayJob
from finetune_operator.status import condition_is_true

FIRST, SECOND = "demo-1f0c3-1", "demo-1f0c3-2"
DELETE = DeleteCluster(FIRST, CLUSTER_UID)
LOST = make_cluster(head_lost=True)
CHECKPOINT = {"step": 8, "path": "checkpoints/step-00000008", "time": "2026-01-02T03:04:00Z"}


@dataclass
class Life:
    """A job, and the clock of its operator."""

    job: FinetuneJob
    now: datetime = NOW

    def see(self, observed: Observed, *, after: float = 0) -> Plan:
        """Decide, and store the status."""
        self.now += timedelta(seconds=after)
        plan = decide(self.job, observed, self.now)
        self.job = self.job.model_copy(update={"status": plan.status})
        return plan

    def change(self, **spec: Any) -> None:
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update=spec)})

    @property
    def phase(self) -> Phase | None:
        return self.job.status.phase


def running(**spec: Any) -> Life:
    """A job whose first attempt is at step 10, after 30 seconds of training."""
    life = Life(make_job(spec=spec))
    life.see(Observed())
    life.see(Observed())
    life.see(make_observed("Missing"))
    life.see(make_observed("RUNNING"))
    life.see(make_observed("RUNNING", progress=make_progress(checkpoint=CHECKPOINT)), after=30)
    assert life.phase is Phase.RUNNING
    return life


def failed(message: str = "boom") -> Observed:
    return make_observed("FAILED", ray_message=message)


def test_a_failure_of_the_trainer_is_tried_again_on_the_same_cluster() -> None:
    life = running()
    plan = life.see(failed())
    assert (life.phase, plan.actions) == (Phase.RETRYING, ())
    assert life.job.status.message == "attempt 2 of 3 begins in 10 s; TrainingFailed: boom"
    assert life.see(failed(), after=9).requeue_after == 1
    life.see(failed(), after=1)
    ray = life.job.status.ray
    assert ray is not None
    assert (life.job.status.attempt, ray.cluster, ray.submission_id) == (2, FIRST, f"{UID}-a2")
    assert life.see(make_observed("Missing")).actions == (Submit(2),)
    life.see(make_observed("RUNNING", progress=make_progress(attempt=2)))
    assert life.phase is Phase.RUNNING
    (attempt,) = life.job.status.attempt_history
    assert (attempt.attempt, attempt.reason, attempt.last_step, attempt.cluster) == (1, "TrainingFailed", 10, FIRST)


def test_a_lost_cluster_is_deleted_and_its_pods_are_waited_for_before_the_next_is_made() -> None:
    life = running()
    life.see(make_observed("Unknown", cluster=LOST))
    assert life.phase is Phase.RETRYING
    assert life.see(make_observed("Unknown", cluster=LOST)).actions == (DELETE,)
    assert life.see(make_observed("Unknown", cluster=replace(LOST, deleting=True))).actions == ()
    assert life.see(Observed(pods=(make_pod(),)), after=20).actions == ()
    assert life.job.status.attempt == 1
    life.see(Observed())
    assert (life.job.status.attempt, life.job.status.ray and life.job.status.ray.cluster) == (2, SECOND)
    assert life.see(Observed()).actions == (CreateCluster(2),)


def test_pods_of_a_dead_node_are_not_waited_for_for_ever() -> None:
    life = running()
    life.see(Observed())
    life.see(Observed(pods=(make_pod(),)), after=61)
    assert life.job.status.attempt == 2


def test_a_cluster_that_goes_in_the_pause_is_replaced() -> None:
    life = running()
    life.see(failed())
    life.see(Observed(), after=10)
    assert life.job.status.ray
    assert life.job.status.ray.cluster == SECOND


def test_the_pause_doubles_up_to_its_limit_and_attempts_end() -> None:
    life = running(retryPolicy={"maxAttempts": 4, "backoffSeconds": 20, "maxBackoffSeconds": 50})
    for attempt, pause in ((1, 20), (2, 40), (3, 50)):
        life.see(failed())
        assert life.job.status.message is not None
        assert f"attempt {attempt + 1} of 4 begins in {pause} s" in life.job.status.message
        life.see(failed(), after=pause - 1)
        assert life.phase is Phase.RETRYING
        life.see(failed(), after=1)
        life.see(make_observed("RUNNING"))
        assert life.job.status.attempt == attempt + 1
    life.see(failed("the last straw"))
    assert (life.phase, life.job.status.reason) == (Phase.FAILED, Reason.TRAINING_FAILED)
    assert life.job.status.message == "attempt 4 of 4: the last straw"
    assert [attempt.attempt for attempt in life.job.status.attempt_history] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "reason",
    [
        "InvalidSpec",
        "DatasetInvalid",
        "DatasetNotFound",
        "ModelNotFound",
        "ModelAccessDenied",
        "ModelInvalid",
        "DeviceNotFound",
        "LossNotFinite",
        "OutOfMemory",
    ],
)
def test_what_a_retry_cannot_mend_is_not_tried_again(reason: str) -> None:
    life = running()
    life.see(make_observed("FAILED", progress=make_progress(failure={"reason": reason, "message": "why"})))
    assert (life.phase, life.job.status.reason) == (Phase.FAILED, reason)


@pytest.mark.parametrize(("retryable", "phase"), [(False, Phase.FAILED), (True, Phase.RETRYING), (None, Phase.RETRYING)])
def test_the_trainers_word_on_a_failure_of_an_unknown_kind_counts(retryable: bool | None, phase: Phase) -> None:
    life = running()
    failure = {"reason": "TrainingFailed", "message": "RuntimeError: shapes", "retryable": retryable}
    life.see(make_observed("FAILED", progress=make_progress(failure=failure)))
    assert life.phase is phase
    assert life.job.status.message is not None
    assert "RuntimeError: shapes" in life.job.status.message


def test_an_evicted_pod_is_replaced_whatever_its_trainer_says_of_the_error_that_followed() -> None:
    life = running()
    failure = {"reason": "TrainingFailed", "message": "RuntimeError: odd", "retryable": False}
    life.see(make_observed("FAILED", lost=(make_pod("w", trouble=Reason.EVICTED),), progress=make_progress(failure=failure)))
    assert life.phase is Phase.RETRYING


def test_a_policy_of_one_attempt_fails_at_once() -> None:
    life = running(retryPolicy={"maxAttempts": 1})
    life.see(failed())
    assert life.phase is Phase.FAILED


def test_active_time_is_summed_over_attempts_without_the_pauses() -> None:
    life = running(activeDeadlineSeconds=100)
    life.see(failed(), after=30)
    life.see(failed(), after=3600)
    life.see(make_observed("Missing"), after=3600)
    life.see(make_observed("RUNNING"))
    assert life.see(make_observed("RUNNING"), after=39).status.phase is Phase.RUNNING
    assert life.see(make_observed("RUNNING"), after=1).status.reason == Reason.DEADLINE_EXCEEDED
    assert life.see(make_observed("STOPPED")).status.phase is Phase.FAILED
    assert life.job.status.active_seconds == 100


def test_a_suspended_run_is_asked_for_a_checkpoint_before_its_cluster_goes() -> None:
    life = running()
    life.change(suspend=True)
    assert (life.see(make_observed("RUNNING")).actions, life.phase) == ((), Phase.SUSPENDING)
    assert life.see(make_observed("RUNNING")).actions == (StopRun(1),)
    stopped = make_progress(state="stopped", step=12, checkpoint=CHECKPOINT | {"step": 12})
    assert life.see(make_observed("FAILED", progress=stopped)).actions == (DELETE,)
    assert life.job.status.checkpoint
    assert life.job.status.checkpoint.step == 12
    assert life.see(make_observed(cluster=make_cluster(deleting=True))).actions == ()
    plan = life.see(Observed())
    assert (life.phase, life.job.status.ray, plan.requeue_after) == (Phase.SUSPENDED, None, None)
    assert life.job.status.message == "no pods; set spec.suspend to false to go on from step 12"
    assert life.see(Observed()).status == life.job.status
    life.change(suspend=False)
    life.see(Observed(), after=3600)
    assert (life.phase, life.job.status.attempt) == (Phase.PENDING, 2)
    assert life.see(Observed()).actions == (CreateCluster(2),)
    assert life.job.status.failed_attempts is None


def test_a_run_that_writes_no_checkpoint_is_not_waited_for_for_ever() -> None:
    life = running()
    life.change(suspend=True)
    life.see(make_observed("RUNNING"))
    assert life.see(make_observed("RUNNING"), after=STOP_GRACE_SECONDS - 1).actions == (StopRun(1),)
    assert life.see(make_observed("RUNNING"), after=1).actions == (DELETE,)


def test_a_job_that_is_suspended_from_the_start_makes_nothing() -> None:
    life = Life(make_job(spec={"suspend": True}))
    assert life.see(Observed()).actions == ()
    assert (life.phase, life.job.status.attempt, life.job.status.attempt_history) == (Phase.SUSPENDED, None, ())
    life.change(suspend=False)
    life.see(Observed())
    assert life.job.status.attempt == 1


def test_a_run_that_succeeds_while_it_is_suspended_is_completed() -> None:
    life = running()
    life.change(suspend=True)
    life.see(make_observed("RUNNING"))
    life.see(make_observed("SUCCEEDED", progress=make_progress(**finished_progress())))
    assert life.phase is Phase.SUCCEEDED


def test_taking_a_suspension_back_while_it_stops_ends_in_another_attempt() -> None:
    life = running()
    life.change(suspend=True)
    life.see(make_observed("RUNNING"))
    life.change(suspend=False)
    assert life.see(make_observed("STOPPED")).actions == (DELETE,)
    life.see(Observed())
    assert life.phase is Phase.SUSPENDED
    life.see(Observed())
    assert life.job.status.attempt == 2


def test_the_time_that_a_cluster_takes_to_go_does_not_count() -> None:
    life = running(activeDeadlineSeconds=100)
    life.change(suspend=True)
    life.see(make_observed("RUNNING"), after=10)
    life.see(make_observed("STOPPED"), after=5)
    assert life.job.status.active_seconds == 45
    for _ in range(3):
        life.see(make_observed(cluster=make_cluster(deleting=True)), after=100)
        assert life.phase is Phase.SUSPENDING
    life.see(Observed())
    assert (life.phase, life.job.status.active_seconds) == (Phase.SUSPENDED, 45)
    assert len(life.job.status.attempt_history) == 1


def test_neither_clock_runs_while_suspended() -> None:
    life = running(activeDeadlineSeconds=100, provisioningTimeoutSeconds=60)
    life.change(suspend=True)
    life.see(make_observed("STOPPED"), after=10)
    life.see(Observed())
    life.change(suspend=False)
    life.see(Observed(), after=86400)
    assert life.phase is Phase.PENDING
    assert life.see(make_observed("Unknown"), after=59).status.phase is not Phase.FAILED
    assert life.see(make_observed("Unknown"), after=1).status.reason == Reason.PROVISIONING_TIMEOUT


def test_a_cancelled_job_is_not_tried_again() -> None:
    life = running()
    life.see(failed())
    life.change(cancel=True)
    life.see(failed())
    assert life.phase is Phase.CANCELLED
    assert len(life.job.status.attempt_history) == 1


def test_a_checkpoint_shows_in_the_status() -> None:
    status = running().job.status
    assert status.checkpoint
    assert (status.checkpoint.step, status.checkpoint.path) == (8, "checkpoints/step-00000008")
    assert condition_is_true(status, "CheckpointAvailable")  # type: ignore[arg-type]


def test_a_run_that_was_stopped_by_somebody_else_goes_on() -> None:
    """As when a node is drained: the driver got SIGTERM and has left a checkpoint."""
    life = running()
    life.see(Observed(cluster=make_cluster(), ray_job=RayJob("FAILED"), progress=make_progress(state="stopped", step=7)))
    assert life.phase is Phase.RETRYING
    assert "asked to stop by somebody else than the operator, at step 7" in str(life.job.status.message)
