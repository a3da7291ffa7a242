"""Cancellation, deadlines, stalls, and what is kept of a job that has ended."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import (
    CLUSTER_UID,
    NOW,
    UID,
    begun,
    finished_progress,
    make_cluster,
    make_job,
    make_observed,
    make_progress,
)

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJob, FinetuneJobStatus, Phase, Reason
from finetune_operator.decide import DeleteCluster, DeleteJob, Plan, decide
from finetune_operator.observed import Missing, Observed
from finetune_operator.reconciler import read_job
from finetune_operator.status import find_condition, status_patch

DELETE_CLUSTER = DeleteCluster("demo-1f0c3-1", CLUSTER_UID)
PHASES = {
    "new": FinetuneJobStatus(),
    "accepted": begun(),
    "provisioning": begun(Phase.PROVISIONING, submitted=True),
    "running": begun(Phase.RUNNING, submitted=True, start_time=NOW),
}


def after(seconds: float, status: FinetuneJobStatus, observed: Observed, **spec: Any) -> Plan:
    """The decision so many seconds after NOW."""
    return decide(make_job(spec=spec, status=status), observed, NOW + timedelta(seconds=seconds))


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_is_cancelled_in_every_phase(phase: str) -> None:
    plan = after(5, PHASES[phase], make_observed("RUNNING"), cancel=True)
    assert (plan.status.phase, plan.status.reason, plan.actions) == (Phase.CANCELLED, "CancelledByUser", ())
    assert plan.status.completion_time == NOW + timedelta(seconds=5)
    complete, failed = (find_condition(plan.status, type_) for type_ in (ConditionType.COMPLETE, ConditionType.FAILED))
    assert complete
    assert (complete.status, failed) == ("False", None)
    then = after(6, plan.status, make_observed("RUNNING"), cancel=True)
    assert (then.status, then.actions) == (plan.status, (DELETE_CLUSTER,))


def test_a_cancelled_job_stays_so_whatever_is_seen() -> None:
    plan = after(5, PHASES["running"], make_observed("RUNNING"), cancel=True)
    report = make_progress(**finished_progress())
    assert after(9, plan.status, make_observed("SUCCEEDED", progress=report), cancel=True).status == plan.status


def test_the_deadline_of_a_run_is_met_to_the_second() -> None:
    status = PHASES["running"]
    before = after(59, status, make_observed("RUNNING"), activeDeadlineSeconds=60)
    assert before.status.phase is Phase.RUNNING
    assert before.requeue_after is not None
    assert before.requeue_after <= 1
    ended = after(60, status, make_observed("RUNNING"), activeDeadlineSeconds=60)
    assert (ended.status.phase, ended.status.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert ended.status.active_seconds == 60
    assert [attempt.reason for attempt in ended.status.attempt_history] == ["DeadlineExceeded"]


def test_a_job_that_does_not_start_in_time_says_what_it_waited_for() -> None:
    status = begun(Phase.PROVISIONING, reason="Unschedulable", message="pod a: 0/3 nodes are available")
    starting = make_observed(cluster=make_cluster(head_ready=False))
    waiting = after(29, status, starting, provisioningTimeoutSeconds=30)
    assert (waiting.status.phase, waiting.requeue_after) == (Phase.PROVISIONING, 1)
    ended = after(30, status, starting, provisioningTimeoutSeconds=30)
    assert (ended.status.phase, ended.status.reason) == (Phase.FAILED, "ProvisioningTimeout")
    assert ended.status.message
    assert "provisioningTimeoutSeconds, 30 s: pod a: 0/3 nodes are available" in ended.status.message


def test_time_without_what_the_job_needs_does_not_count() -> None:
    missing = Observed(missing=(Missing.of_kind("ConfigMap", "dataset.configMap", "rows", "team"),))
    waiting = after(0, FinetuneJobStatus(), missing, provisioningTimeoutSeconds=30)
    assert after(3600, waiting.status, missing, provisioningTimeoutSeconds=30).status.phase is Phase.PENDING
    accepted = after(3600, waiting.status, Observed(), provisioningTimeoutSeconds=30)
    assert after(3629, accepted.status, Observed(), provisioningTimeoutSeconds=30).status.phase is Phase.PENDING
    assert after(3630, accepted.status, Observed(), provisioningTimeoutSeconds=30).status.reason == Reason.PROVISIONING_TIMEOUT


def test_a_running_job_has_no_provisioning_timeout() -> None:
    assert after(3600, PHASES["running"], make_observed("RUNNING"), provisioningTimeoutSeconds=30).status.phase is Phase.RUNNING


def test_a_run_without_a_new_step_is_stalled_and_recovers_with_the_next() -> None:
    seen = make_observed("RUNNING", progress=make_progress(step=7))
    plan = after(899, PHASES["running"], seen)
    assert plan.status.reason == Reason.TRAINING_RUNNING
    stalled = after(900, plan.status, seen)
    assert (stalled.status.phase, stalled.status.reason) == (Phase.RUNNING, Reason.STALLED)
    assert stalled.status.message == "no new step since 2026-01-02T03:04:05Z, after step 7"
    progressing = find_condition(stalled.status, ConditionType.PROGRESSING)
    assert progressing
    assert (progressing.status, progressing.reason) == ("False", "Stalled")
    assert status_patch(stalled.status, after(960, stalled.status, seen).status) is None
    later = make_progress(step=8, lastReportTime="2026-01-02T03:20:05Z")
    going = after(961, stalled.status, make_observed("RUNNING", progress=later))
    assert going.status.reason == Reason.TRAINING_RUNNING


def test_the_stall_timeout_is_the_jobs_own() -> None:
    assert after(30, PHASES["running"], make_observed("RUNNING"), stallTimeoutSeconds=30).status.reason == Reason.STALLED


@pytest.mark.parametrize(
    ("phase", "seconds"),
    [(Phase.SUCCEEDED, 10), (Phase.FAILED, 50), (Phase.CANCELLED, 50)],
    ids=["success", "failure", "cancelled"],
)
def test_the_cluster_is_kept_as_long_as_was_said(phase: Phase, seconds: int) -> None:
    status, ttl = begun(phase, completion_time=NOW), {"onSuccess": 10, "onFailure": 50}
    early = after(seconds - 1, status, make_observed(), clusterTTLSeconds=ttl)
    assert (early.actions, early.requeue_after) == ((), 1)
    assert after(seconds, status, make_observed(), clusterTTLSeconds=ttl).actions == (DELETE_CLUSTER,)


def test_a_change_of_a_job_that_has_ended_is_acknowledged() -> None:
    """Argo CD and Flux wait until observedGeneration is that of the spec."""
    status = begun(Phase.SUCCEEDED, completion_time=NOW)
    job = make_job(metadata={"generation": 2}, status=status)
    assert decide(job, Observed(), NOW).status == status.model_copy(update={"observed_generation": 2})


def test_the_job_itself_goes_when_its_time_is_over() -> None:
    status = begun(Phase.SUCCEEDED, completion_time=NOW)
    early = after(599, status, Observed(), ttlSecondsAfterFinished=600)
    assert (early.actions, early.requeue_after) == ((), 1)
    assert after(600, status, Observed(), ttlSecondsAfterFinished=600).actions == (DeleteJob(),)
    assert after(86400, status, Observed()).actions == ()


def test_what_was_made_for_a_job_that_cannot_be_read_any_more_is_cleaned_up() -> None:
    raw = {
        "metadata": {"name": "demo", "namespace": "team", "uid": UID},
        "spec": {"nonsense": True},
        "status": {"phase": "Failed", "completionTime": "2026-01-02T03:04:05Z"},
    }
    job, refusal = read_job(raw)
    assert refusal
    assert isinstance(job, FinetuneJob)
    assert decide(job, make_observed(), NOW).actions == (DELETE_CLUSTER,)
