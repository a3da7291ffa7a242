"""What holds for every sequence of observations, however odd."""

from __future__ import annotations

import itertools
import json
from datetime import datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import (
    NOW,
    OTHER_UID,
    UID,
    begun,
    finished_progress,
    make_cluster,
    make_job,
    make_pod,
    make_progress,
    merge,
)

from finetune_operator.api.reasons import Problem, Reason
from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import (
    TERMINAL,
    AttemptStatus,
    ConditionType,
    FinetuneJob,
    FinetuneJobStatus,
    Phase,
    dump,
)
from finetune_operator.decide import CreateCluster, DeleteCluster, DeleteJob, Plan, StopRun, Submit, decide
from finetune_operator.desired import naming
from finetune_operator.observed import Observed, RayJob, missing_object
from finetune_operator.status import condition_is_true, status_patch

STATUS_SCHEMA = crd_schema()["properties"]["status"]
PROBLEMS = [None, Reason.UNSCHEDULABLE, Reason.WORKER_OOM_KILLED, Reason.IMAGE_PULL_FAILED]

SOUND = [make_cluster(head_ready=head, workers_ready=workers) for head in (True, False) for workers in (0, 2)]
ODD = [
    make_cluster(uid=uid, owner_uid=owner, deleting=deleting, head_ready=head, head_lost=not head, message=message)
    for uid, owner, deleting, head, message in itertools.product(
        ("one", "two"), (UID, OTHER_UID, None), (False, True), (True, False), ("", "exceeded quota", "x" * 5000)
    )
]
PODS = [make_pod(name, is_head=name == "h", reason=reason) for name in "abh" for reason in PROBLEMS]
REPORTS = [
    *(make_progress(step=step, percent=5 * step, etaSeconds=eta) for step in (0, 1, 20) for eta in (None, 0, 10**6)),
    make_progress(**finished_progress()),
    make_progress(failure={"reason": "OutOfMemory", "message": "\x00" + "y" * 9000}),
]
STATES = ["Unknown", "Missing", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
RAY_JOBS = [RayJob(state, message) for state in STATES for message in ("", "z" * 9000)]

observations = st.builds(
    Observed,
    missing=st.sampled_from([(), (), (missing_object("PersistentVolumeClaim", "output.persistentVolumeClaim", "out", "team"),)]),
    cluster=st.one_of(st.none(), st.sampled_from(SOUND), st.sampled_from(SOUND), st.sampled_from(ODD)),
    pods=st.sampled_from([(), *((pod,) for pod in PODS), *itertools.pairwise(PODS)]),
    ray_job=st.sampled_from(RAY_JOBS),
    progress=st.none() | st.sampled_from(REPORTS),
    start_problem=st.sampled_from([None, None, None, Problem(Reason.QUOTA_EXCEEDED, "quota")]),
)
sequences = st.lists(st.tuples(observations, st.booleans(), st.sampled_from([0, 1, 20])), min_size=1, max_size=8)
"""Each observation with whether the write of its status came through, and the seconds until the next one."""

ENDED = AttemptStatus(attempt=1, cluster="demo-1f0c3-1", submission_id=f"{UID}-a1", end_time=NOW, reason="SuspendedByUser")
STORED = [
    None,
    begun(),
    begun(Phase.PROVISIONING, submitted=True),
    begun(Phase.RUNNING, submitted=True, start_time=NOW),
    begun(Phase.SUSPENDING, submitted=True),
    begun(Phase.SUSPENDED, ray=None, attempt_history=(ENDED,), active_seconds=0),
    begun(Phase.FAILED, completion_time=NOW),
]
times = st.sampled_from([1, 20, 31536000])
specs = st.fixed_dictionaries(
    {},
    optional={
        "provisioningTimeoutSeconds": times,
        "activeDeadlineSeconds": times,
        "stallTimeoutSeconds": times,
        "clusterTTLSeconds": st.fixed_dictionaries(
            {}, optional={"onSuccess": st.just(0) | times, "onFailure": st.just(0) | times}
        ),
        "retryPolicy": st.fixed_dictionaries(
            {}, optional={"maxAttempts": st.integers(1, 3), "backoffSeconds": st.sampled_from([0, 20])}
        ),
        "ttlSecondsAfterFinished": st.just(0) | times,
    },
)


def store(job: FinetuneJob, plan: Plan) -> FinetuneJob:
    """The job as the API server returns it after the write that the reconciler would make."""
    patch = status_patch(dump(job.status), plan.status)
    merged = merge(dump(job.status), patch or {})
    json.dumps(merged, allow_nan=False)
    assert list(violations(STATUS_SCHEMA, merged, ("status",))) == []
    return job.model_copy(update={"status": FinetuneJobStatus.model_validate(merged)})


def check_actions(job: FinetuneJob, observed: Observed, plan: Plan, now: datetime) -> None:
    """Every action is allowed by what is stored, never by what is only planned."""
    stored, cluster = job.status, observed.cluster
    if stored.phase in TERMINAL:
        assert plan.actions == due_after_the_end(job, observed, now)
        return
    for action in plan.actions:
        match action:
            case CreateCluster(attempt):
                assert cluster is None
                assert stored.ray is not None
                assert (stored.attempt, stored.ray.cluster) == (attempt, naming.cluster_name(job, attempt))
            case Submit(attempt):
                assert stored.attempt == attempt
                assert stored.phase not in {Phase.RETRYING, Phase.SUSPENDING, Phase.SUSPENDED}
                assert not condition_is_true(stored, ConditionType.SUBMITTED)
                assert observed.ray_job.state == "Missing"
                assert cluster is not None
                assert cluster.owner_uid == UID
                assert cluster.head_ready
            case StopRun(attempt):
                assert stored.attempt == attempt
                assert stored.phase is Phase.SUSPENDING or being_stopped(stored)
                assert condition_is_true(stored, ConditionType.SUBMITTED)
            case _:
                assert stored.phase in {Phase.RETRYING, Phase.SUSPENDING} or being_stopped(stored)
                assert cluster is not None
                assert (cluster.owner_uid, cluster.deleting) == (UID, False)
                assert action == DeleteCluster(cluster.name, cluster.uid)
    assert len(plan.actions) <= 1


def being_stopped(status: FinetuneJobStatus) -> bool:
    """Whether the driver of a job that is to end has been asked to stop."""
    return status.ray is not None and status.ray.stop_time is not None


def may_run(job: FinetuneJob, observed: Observed) -> bool:
    """Whether a driver runs for all that is known."""
    cluster = observed.cluster
    lives = cluster is not None and cluster.owner_uid == UID and not (cluster.deleting or cluster.head_lost or cluster.suspended)
    submitted = job.status.ray is not None and condition_is_true(job.status, ConditionType.SUBMITTED)
    return lives and submitted and observed.ray_job.state in {"PENDING", "RUNNING", "Unknown"}


def due_after_the_end(job: FinetuneJob, observed: Observed, now: datetime) -> tuple[Any, ...]:
    """The cluster goes first, and never another's."""
    assert job.status.completion_time is not None
    ended, cluster = (now - job.status.completion_time).total_seconds(), observed.cluster
    ours = cluster is not None and cluster.owner_uid == UID and not cluster.deleting
    ttl = job.spec.ttl_seconds_after_finished
    due: list[Any] = [DeleteCluster(cluster.name, cluster.uid)] if cluster and ours and ended >= cluster_ttl(job) else []
    return (*due, DeleteJob()) if ttl is not None and ended >= ttl else tuple(due)


def cluster_ttl(job: FinetuneJob) -> int:
    ttl = job.spec.cluster_ttl_seconds
    return 0 if ttl is None else ttl.on_success if job.status.phase is Phase.SUCCEEDED else ttl.on_failure


def overdue(job: FinetuneJob, status: FinetuneJobStatus, now: datetime) -> float | None:
    """Seconds since the deadline that holds for a status; below 0 before it, None where there is none."""
    ray = status.ray
    history = status.attempt_history
    over = status.phase not in TERMINAL and history and history[-1].attempt == status.attempt
    if ray is None or over:
        return None
    seconds, since = job.spec.provisioning_timeout_seconds, ray.request_time or NOW
    if started(status) is not None:
        since, seconds = started(status) or NOW, job.spec.active_deadline_seconds
        since -= timedelta(seconds=status.active_seconds or 0)
    return None if seconds is None else (now - since).total_seconds() - seconds


def started(status: FinetuneJobStatus) -> datetime | None:
    """When the training of the current attempt was first seen; what is stored in STORED is from before there were others."""
    if status.ray is None:
        return None
    return status.ray.start_time or (None if status.attempt_history else status.start_time)


def check_verdict(job: FinetuneJob, observed: Observed, plan: Plan, now: datetime) -> None:
    """An end has a cause that was seen, or a time that is over; and what is over or cancelled ends."""
    if job.status.phase in TERMINAL:
        assert plan.status == job.status
        return
    cluster, status, late = observed.cluster, plan.status, overdue(job, plan.status, now)
    assert not (status.phase in TERMINAL and may_run(job, observed)), "a job that has ended has no driver that runs"
    assert (status.reason == Reason.CANCELLED_BY_USER) == job.spec.cancel
    assert (status.phase is Phase.CANCELLED) == (job.spec.cancel and not may_run(job, observed))
    if status.phase is Phase.SUCCEEDED:
        assert observed.ray_job.state == "SUCCEEDED"
        assert observed.progress is not None
        assert observed.progress.output is not None
    if status.reason in {Reason.DEADLINE_EXCEEDED, Reason.PROVISIONING_TIMEOUT}:
        assert status.phase in TERMINAL or being_stopped(status)
    elif not job.spec.cancel and cluster is not None and observed.ray_job.state == "Unknown":
        odd = cluster.owner_uid != UID or cluster.deleting or cluster.head_lost
        assert odd or status.phase not in TERMINAL
    if status.phase in TERMINAL:
        check_end(job, plan, now)
        return
    if status.phase is Phase.SUSPENDED:
        assert job.spec.suspend or job.status.phase is Phase.SUSPENDING
        return
    assert plan.requeue_after is not None
    if being_stopped(status) and status.reason not in {Reason.SUSPENDED_BY_USER, Reason.RETRYING}:  # there, nothing runs
        assert plan.requeue_after <= 5
        return
    assert late is None or (late < 0 and plan.requeue_after <= -late)


def check_end(job: FinetuneJob, plan: Plan, now: datetime) -> None:
    """The end is told once, before anything is done about it."""
    assert (plan.actions, plan.requeue_after, plan.status.completion_time) == ((), 0, now)
    ended = [attempt.attempt for attempt in plan.status.attempt_history]
    assert ended[-1:] == ([] if plan.status.attempt is None else [plan.status.attempt])
    assert ended == sorted(set(ended))
    assert (plan.status.active_seconds is None) == (plan.status.attempt is None)
    assert not condition_is_true(plan.status, ConditionType.PROGRESSING)
    assert condition_is_true(plan.status, ConditionType.COMPLETE) == (plan.status.phase is Phase.SUCCEEDED)
    assert condition_is_true(plan.status, ConditionType.FINISHED)
    assert not condition_is_true(plan.status, ConditionType.SUBMITTED)
    assert not condition_is_true(plan.status, ConditionType.CLUSTER_READY)
    assert condition_is_true(plan.status, ConditionType.FAILED) == (plan.status.phase is Phase.FAILED)


@given(specs, st.sampled_from(STORED), sequences, st.integers(0, 16), st.sets(st.integers(0, 8)))
def test_rules_that_no_sequence_of_observations_breaks(
    spec: dict[str, Any],
    stored: FinetuneJobStatus | None,
    sequence: list[tuple[Observed, bool, int]],
    cancelled_at: int,
    suspends: set[int],
) -> None:
    job, now = make_job(spec=spec, status=stored), NOW
    for number, (observed, came_through, seconds) in enumerate(sequence):
        suspend = number in suspends
        job = job.model_copy(update={"spec": job.spec.model_copy(update={"cancel": number >= cancelled_at, "suspend": suspend})})
        plan = decide(job, observed, now)
        check_actions(job, observed, plan, now)
        check_verdict(job, observed, plan, now)
        assert plan.status.phase is not None
        assert plan.status.reason in set(Reason)
        if came_through:
            job = store(job, plan)
        now += timedelta(seconds=seconds)


@given(observations, observations, st.sampled_from([20, 900]), st.booleans())
def test_what_does_not_change_is_decided_once_and_for_all(first: Observed, second: Observed, stalls: int, suspend: bool) -> None:
    """Attempts end, and then nothing more is written."""
    job, now = make_job(spec={"stallTimeoutSeconds": stalls, "suspend": suspend}), NOW
    for observed in (Observed(), first, *[second] * 20):
        job = store(job, decide(job, observed, now))
        now += timedelta(minutes=20)
    again = decide(job, second, now)
    assert status_patch(dump(job.status), again.status) is None


@given(observations)
def test_decide_is_a_pure_function(observed: Observed) -> None:
    job: Any = make_job(status=dump(decide(make_job(), Observed(), NOW).status))
    assert decide(job, observed, NOW) == decide(job, observed, NOW)
