"""Cancellation, deadlines, stalls, polls, and what is kept of a job that has ended."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import (
    CLUSTER_UID,
    NOW,
    OTHER_UID,
    UID,
    begun,
    finished_progress,
    make_cluster,
    make_job,
    make_observed,
    make_progress,
    raw_job,
)

from finetune_operator.api.reading import read_job
from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.decide import DeleteCluster, DeleteJob, Plan, decide, decide_unreadable
from finetune_operator.decide.lifecycle import poll_seconds
from finetune_operator.observed import Missing, Observed, RayJob
from finetune_operator.status import find_condition, progress_status, status_patch

DELETE_CLUSTER = DeleteCluster("demo-1f0c3-1", CLUSTER_UID)
FINISHED = make_progress(**finished_progress())
STARTING = make_observed(cluster=make_cluster(head_ready=False, workers_ready=0))
MISSING = (Missing.of_kind("ConfigMap", "dataset.configMap", "rows", "team"),)
PHASES = {
    "new": FinetuneJobStatus(),
    "accepted": begun(),
    "provisioning": begun(Phase.PROVISIONING, submitted=True),
    "running": begun(Phase.RUNNING, submitted=True, start_time=NOW),
}


def after(seconds: float, status: FinetuneJobStatus, observed: Observed, **spec: Any) -> Plan:
    """The decision so many seconds after NOW."""
    return decide(make_job(spec=spec, status=status), observed, NOW + timedelta(seconds=seconds))


def when_stopped(seconds: float, status: FinetuneJobStatus, observed: Observed, **spec: Any) -> Plan:
    """The same once the driver has stopped that the decision asks to stop."""
    plan = after(seconds, status, observed, **spec)
    assert plan.status.phase not in TERMINAL
    return after(seconds, stored(plan.status), replace(observed, ray_job=RayJob("STOPPED")), **spec)


def stored(status: FinetuneJobStatus) -> FinetuneJobStatus:
    """As the next process of the operator reads it: times have whole seconds."""
    return FinetuneJobStatus.model_validate(dump(status))


def condition(status: FinetuneJobStatus, type_: ConditionType) -> tuple[str, str] | None:
    found = find_condition(status, type_)
    return (found.status, found.reason) if found else None


@pytest.mark.parametrize("phase", PHASES)
def test_a_job_is_cancelled_in_every_phase_and_its_cluster_deleted_afterwards(phase: str) -> None:
    decision = when_stopped if phase in {"provisioning", "running"} else after
    plan = decision(5, PHASES[phase], make_observed("RUNNING"), cancel=True)
    assert (plan.status.phase, plan.status.reason, plan.actions) == (Phase.CANCELLED, "CancelledByUser", ())
    assert (plan.status.completion_time, plan.requeue_after) == (NOW + timedelta(seconds=5), 0)
    assert condition(plan.status, ConditionType.PROGRESSING) == ("False", "CancelledByUser")
    assert condition(plan.status, ConditionType.COMPLETE) == ("False", "CancelledByUser")
    assert condition(plan.status, ConditionType.FAILED) is None
    then = after(6, stored(plan.status), make_observed("RUNNING"), cancel=True)
    assert (dump(then.status), then.actions) == (dump(plan.status), (DELETE_CLUSTER,))


def test_a_job_that_was_never_begun_is_cancelled_without_a_look_at_what_it_misses() -> None:
    plan = after(5, FinetuneJobStatus(), Observed(missing=MISSING), cancel=True)
    assert plan.status.phase is Phase.CANCELLED
    assert (plan.status.attempt, plan.status.attempt_history, plan.status.active_seconds) == (None, (), None)


@pytest.mark.parametrize("cancel", [True, False], ids=["cancelled", "taken back in an old object"])
@pytest.mark.parametrize("state", ["Unknown", "Missing", "RUNNING", "FAILED", "SUCCEEDED"])
def test_a_cancelled_job_stays_so_whatever_is_seen(state: Any, cancel: bool) -> None:
    plan = when_stopped(5, PHASES["running"], make_observed("RUNNING"), cancel=True)
    assert after(9, plan.status, make_observed(state, progress=FINISHED), cancel=cancel).status == plan.status


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_a_job_that_has_ended_cannot_be_cancelled(phase: Phase) -> None:
    status = begun(phase, completion_time=NOW)
    assert after(5, status, Observed(), cancel=True) == Plan(status)


def test_the_deadline_of_a_run_is_met_to_the_second() -> None:
    before = after(59, PHASES["running"], make_observed("RUNNING"), activeDeadlineSeconds=60)
    assert (before.status.phase, before.requeue_after) == (Phase.RUNNING, 1)
    assert after(59.5, PHASES["running"], make_observed("RUNNING"), activeDeadlineSeconds=60).requeue_after == 0.5
    ended = when_stopped(60, PHASES["running"], make_observed("RUNNING"), activeDeadlineSeconds=60)
    assert (ended.status.phase, ended.status.reason) == (Phase.FAILED, "DeadlineExceeded")
    assert ended.status.message == "the training took longer than spec.activeDeadlineSeconds, 60 s"
    assert condition(ended.status, ConditionType.FAILED) == ("True", "DeadlineExceeded")
    assert ended.actions == ()
    assert after(60, ended.status, make_observed("RUNNING"), activeDeadlineSeconds=60).actions == (DELETE_CLUSTER,)


def test_a_deadline_that_is_far_away_changes_no_pause() -> None:
    assert after(10, PHASES["running"], make_observed("RUNNING"), activeDeadlineSeconds=60).requeue_after == 1
    assert after(10, PHASES["accepted"], STARTING, provisioningTimeoutSeconds=60).requeue_after == 5


def test_the_time_before_the_training_is_not_that_of_the_training() -> None:
    assert after(3600, PHASES["provisioning"], STARTING, activeDeadlineSeconds=60).status.phase is Phase.PROVISIONING
    started = after(3600, PHASES["provisioning"], make_observed("RUNNING"), activeDeadlineSeconds=60)
    assert (started.status.phase, started.requeue_after) == (Phase.RUNNING, 1)
    assert after(3659, started.status, make_observed("RUNNING"), activeDeadlineSeconds=60).status.phase is Phase.RUNNING
    assert when_stopped(3660, started.status, make_observed("RUNNING"), activeDeadlineSeconds=60).status.phase is Phase.FAILED


def test_a_job_that_does_not_start_in_time_says_what_it_waited_for() -> None:
    status = begun(Phase.PROVISIONING, reason="Unschedulable", message="pod a: 0/3 nodes are available")
    waiting = after(29, status, STARTING, provisioningTimeoutSeconds=30)
    assert (waiting.status.phase, waiting.requeue_after) == (Phase.PROVISIONING, 1)
    ended = after(30, status, STARTING, provisioningTimeoutSeconds=30)
    assert (ended.status.phase, ended.status.reason) == (Phase.FAILED, "ProvisioningTimeout")
    assert ended.status.message == (
        "the training did not start within spec.provisioningTimeoutSeconds, 30 s: pod a: 0/3 nodes are available"
    )


def test_a_cluster_that_cannot_be_made_is_not_tried_for_ever() -> None:
    status = begun(reason="QuotaExceeded", message="exceeded quota: team")
    ended = after(30, status, Observed(), provisioningTimeoutSeconds=30)
    assert (ended.status.reason, ended.actions) == (Reason.PROVISIONING_TIMEOUT, ())
    assert (ended.status.message or "").endswith("30 s: exceeded quota: team")


def test_deadlines_hold_across_a_restart() -> None:
    """The next process knows the stored status only."""
    accepted = stored(after(0.9, FinetuneJobStatus(), Observed(), provisioningTimeoutSeconds=30).status)
    assert after(29.5, accepted, STARTING, provisioningTimeoutSeconds=30).requeue_after == 0.5
    assert after(30, accepted, STARTING, provisioningTimeoutSeconds=30).status.reason == Reason.PROVISIONING_TIMEOUT
    started = stored(after(10.9, accepted, make_observed("RUNNING"), activeDeadlineSeconds=60).status)
    assert after(69.5, started, make_observed("RUNNING"), activeDeadlineSeconds=60).requeue_after == 0.5
    assert after(70, started, make_observed("RUNNING"), activeDeadlineSeconds=60).status.reason == Reason.DEADLINE_EXCEEDED


@pytest.mark.parametrize(
    ("observed", "reason"),
    [
        (make_observed("SUCCEEDED", progress=FINISHED), Reason.COMPLETED),
        (
            make_observed("FAILED", progress=make_progress(failure={"reason": "OutOfMemory", "message": "m"})),
            Reason.OUT_OF_MEMORY,
        ),
    ],
    ids=["succeeded", "failed"],
)
def test_a_run_that_has_ended_is_judged_by_its_end_however_late_that_is_seen(observed: Observed, reason: Reason) -> None:
    for phase in ("provisioning", "running"):
        ended = after(9999, PHASES[phase], observed, activeDeadlineSeconds=60, provisioningTimeoutSeconds=30)
        assert ended.status.reason == reason


def test_a_lost_run_whose_time_is_used_up_is_not_tried_again() -> None:
    lost = after(60, PHASES["running"], Observed(), activeDeadlineSeconds=60)
    assert (lost.status.phase, lost.status.reason) == (Phase.FAILED, Reason.HEAD_LOST)
    assert "spec.activeDeadlineSeconds, 60 s, are used up" in str(lost.status.message)
    assert after(59, PHASES["running"], Observed(), activeDeadlineSeconds=60).status.phase is Phase.RETRYING


def test_a_training_that_is_found_running_has_started_in_time() -> None:
    found = after(9999, PHASES["provisioning"], make_observed("RUNNING"), provisioningTimeoutSeconds=30)
    assert (found.status.phase, found.status.start_time) == (Phase.RUNNING, NOW + timedelta(seconds=9999))


def test_time_without_what_the_job_needs_does_not_count() -> None:
    missing = Observed(missing=MISSING)
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
    assert condition(plan.status, ConditionType.PROGRESSING) == ("True", "TrainingRunning")
    assert after(1798, plan.status, seen).status.reason == Reason.TRAINING_RUNNING
    stalled = after(1799, plan.status, seen)
    assert (stalled.status.phase, stalled.status.reason) == (Phase.RUNNING, Reason.STALLED)
    assert stalled.status.message == "no new step since 2026-01-02T03:19:04Z, after step 7"
    assert condition(stalled.status, ConditionType.PROGRESSING) == ("False", "Stalled")
    later = make_progress(step=8, lastReportTime="2016-01-02T03:20:05Z")  # the clock of its node is ten years off
    going = after(1800, stalled.status, make_observed("RUNNING", progress=later))
    assert going.status.reason == Reason.TRAINING_RUNNING
    assert condition(going.status, ConditionType.PROGRESSING) == ("True", "TrainingRunning")


def test_a_stall_is_written_once_and_not_with_each_poll() -> None:
    seen = make_observed("RUNNING", progress=make_progress(step=7))
    running = stored(after(0, PHASES["running"], seen).status)
    stalled = stored(after(900, running, seen).status)
    assert stalled.reason == Reason.STALLED
    for seconds in (901, 960, 7200):
        assert status_patch(dump(stalled), after(seconds, stalled, seen).status) is None


def test_a_run_that_never_makes_a_step_is_stalled_since_its_start() -> None:
    assert after(899, PHASES["running"], make_observed("RUNNING")).status.reason == Reason.TRAINING_STARTING
    assert after(900, PHASES["running"], make_observed("RUNNING")).status.message == (
        "no new step since 2026-01-02T03:04:05Z, after step 0"
    )


def test_the_stall_timeout_is_the_jobs_own_and_ends_nothing() -> None:
    plan = after(30, PHASES["running"], make_observed("RUNNING"), stallTimeoutSeconds=30)
    assert (plan.status.phase, plan.status.reason, plan.actions, plan.requeue_after) == (Phase.RUNNING, "Stalled", (), 1)
    report = make_observed("SUCCEEDED", progress=FINISHED)
    assert after(31, plan.status, report, stallTimeoutSeconds=30).status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("observed", "spec", "reason", "step"),
    [
        (make_observed("SUCCEEDED", progress=FINISHED), {}, "Completed", 20),
        (make_observed("FAILED", progress=make_progress()), {}, "TrainingFailed", 10),
        (make_observed("RUNNING", progress=make_progress()), {"activeDeadlineSeconds": 60}, "DeadlineExceeded", 10),
        (make_observed("RUNNING"), {"cancel": True}, "CancelledByUser", None),
    ],
    ids=["success", "failure", "deadline", "cancelled"],
)
def test_an_attempt_that_has_ended_goes_on_record(observed: Observed, spec: Any, reason: str, step: int | None) -> None:
    decision = when_stopped if spec else after
    status = dump(decision(90.6, PHASES["running"], observed, **spec).status)
    assert status["activeSeconds"] == 91
    assert status["attemptHistory"] == [
        {
            "attempt": 1,
            "cluster": "demo-1f0c3-1",
            "submissionId": f"{UID}-a1",
            "startTime": "2026-01-02T03:04:05Z",
            "endTime": "2026-01-02T03:05:35Z",
            "reason": reason,
        }
        | ({} if step is None else {"lastStep": step})
    ]


@pytest.mark.parametrize("keeps", [False, True], ids=["removed", "kept"])
def test_the_checkpoint_of_a_job_that_has_succeeded_is_what_its_trainer_last_reported(keeps: bool) -> None:
    checkpoint = {"step": 8, "path": "/output/checkpoints/step-00000008", "time": "2026-01-02T03:04:05Z"}
    running = after(1, PHASES["running"], make_observed("RUNNING", progress=make_progress(checkpoint=checkpoint))).status
    report = make_progress(**finished_progress(checkpoint=checkpoint if keeps else None))
    status = after(9, stored(running), make_observed("SUCCEEDED", progress=report)).status
    assert (status.checkpoint is not None) == keeps
    available = ("True", "Checkpointed") if keeps else ("False", "Completed")
    assert condition(status, ConditionType.CHECKPOINT_AVAILABLE) == available


def test_an_attempt_that_never_trained_has_no_start_and_no_active_seconds() -> None:
    status = dump(after(30, PHASES["accepted"], STARTING, provisioningTimeoutSeconds=30).status)
    assert status["activeSeconds"] == 0
    assert "startTime" not in status["attemptHistory"][0]


def test_active_seconds_add_up_and_the_last_five_attempts_are_kept() -> None:
    earlier = after(1, PHASES["running"], make_observed("FAILED")).status.attempt_history * 5
    running, ray = PHASES["running"], PHASES["running"].ray
    assert ray is not None
    update = {"attempt": 6, "attempt_history": earlier, "active_seconds": 100}
    status = running.model_copy(update={**update, "ray": ray.model_copy(update={"start_time": running.start_time})})
    ended = after(60, status, make_observed("FAILED")).status
    assert [attempt.attempt for attempt in ended.attempt_history] == [1, 1, 1, 1, 6]
    assert ended.active_seconds == 160


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


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
def test_a_cluster_for_which_nothing_was_said_goes_at_once(phase: Phase) -> None:
    other = {"onFailure": 50} if phase is Phase.SUCCEEDED else {"onSuccess": 50}
    for spec in ({}, {"clusterTTLSeconds": other}):
        assert after(0, begun(phase, completion_time=NOW), make_observed(), **spec).actions == (DELETE_CLUSTER,)


def test_the_job_itself_goes_when_its_time_is_over_and_is_asked_for_until_it_is_gone() -> None:
    status = begun(Phase.SUCCEEDED, completion_time=NOW)
    early = after(599, status, Observed(), ttlSecondsAfterFinished=600)
    assert (early.actions, early.requeue_after) == ((), 1)
    due = after(600, status, Observed(), ttlSecondsAfterFinished=600)
    assert (due.actions, due.requeue_after) == ((DeleteJob(),), 5)
    assert after(86400, status, Observed()).actions == ()


def test_cluster_and_job_go_each_at_its_time_and_the_cluster_first() -> None:
    status = begun(Phase.FAILED, completion_time=NOW)
    spec = {"clusterTTLSeconds": {"onFailure": 10}, "ttlSecondsAfterFinished": 12}
    assert after(9, status, make_observed(), **spec).requeue_after == 1
    first = after(10, status, make_observed(), **spec)
    assert (first.actions, first.requeue_after) == ((DELETE_CLUSTER,), 2)
    assert after(12, status, make_observed(), **spec).actions == (DELETE_CLUSTER, DeleteJob())
    foreign = make_observed(cluster=make_cluster(owner_uid=OTHER_UID))
    assert after(12, status, foreign, **spec).actions == (DeleteJob(),)


def test_what_was_made_for_a_job_that_cannot_be_read_any_more_is_cleaned_up() -> None:
    """Nothing that its spec says holds, so the job itself stays."""
    raw = raw_job(spec={"config": {"Training": {"device": "HPU"}}, "ttlSecondsAfterFinished": 0}, status=begun(Phase.FAILED))
    job, refusal = read_job(raw)
    assert "HPU (Gaudi) is not supported" in (refusal or "")
    assert decide_unreadable(job, make_observed(), refusal or "", NOW).actions == (DELETE_CLUSTER,)


@pytest.mark.parametrize(("eta", "pause"), [(None, 1.0), (0, 0.5), (1, 0.5), (8, 2.0), (40, 10.0), (100_000, 10.0)])
def test_polls_are_a_quarter_of_the_expected_rest_within_bounds(eta: int | None, pause: float) -> None:
    assert poll_seconds(begun(progress=progress_status(make_progress(etaSeconds=eta), None, NOW))) == pause


def test_polls_are_each_second_before_the_first_report() -> None:
    assert poll_seconds(begun()) == 1.0
