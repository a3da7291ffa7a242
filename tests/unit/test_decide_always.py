"""What holds for every sequence of observations, however odd."""

from __future__ import annotations

import itertools
import json
from datetime import timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.support.builders import NOW, OTHER_UID, UID, finished_progress, make_cluster, make_job, make_pod, make_progress, merge

from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJob, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.decide import CreateCluster, DeleteCluster, Plan, Submit, decide
from finetune_operator.observed import Missing, Observed, RayJob
from finetune_operator.status import condition_is_true, status_patch, throttle_progress

STATUS_SCHEMA = crd_schema()["properties"]["status"]
TROUBLES = [None, Reason.UNSCHEDULABLE, Reason.WORKER_OOM_KILLED, Reason.IMAGE_PULL_FAILED]

SOUND = [make_cluster(head_ready=head, workers_ready=workers) for head in (True, False) for workers in (0, 2)]
ODD = [
    make_cluster(uid=uid, owner_uid=owner, deleting=deleting, head_ready=head, head_lost=not head, message=message)
    for uid, owner, deleting, head, message in itertools.product(
        ("one", "two"), (UID, OTHER_UID, None), (False, True), (True, False), ("", "exceeded quota", "x" * 5000)
    )
]
PODS = [make_pod(name, is_head=name == "h", trouble=trouble) for name in "abh" for trouble in TROUBLES]
REPORTS = [
    *(make_progress(step=step, percent=5 * step, etaSeconds=eta) for step in (0, 1, 20) for eta in (None, 0, 10**6)),
    make_progress(**finished_progress()),
    make_progress(failure={"reason": "OutOfMemory", "message": "\x00" + "y" * 9000}),
]
STATES = ["Unknown", "Missing", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
RAY_JOBS = [RayJob(state, message) for state in STATES for message in ("", "z" * 9000)]

observations = st.builds(
    Observed,
    missing=st.sampled_from([(), (), (Missing.of_kind("PersistentVolumeClaim", "output.persistentVolumeClaim", "out", "team"),)]),
    cluster=st.one_of(st.none(), st.sampled_from(SOUND), st.sampled_from(SOUND), st.sampled_from(ODD)),
    pods=st.sampled_from([(), *((pod,) for pod in PODS), *itertools.pairwise(PODS)]),
    ray_job=st.sampled_from(RAY_JOBS),
    progress=st.none() | st.sampled_from(REPORTS),
    problem=st.sampled_from([None, None, None, (Reason.QUOTA_EXCEEDED, "quota")]),
)
sequences = st.lists(st.tuples(observations, st.booleans()), min_size=1, max_size=8)
"""Each observation with whether the write of its status came through."""


def store(job: FinetuneJob, plan: Plan) -> FinetuneJob:
    """The job as the API server returns it after the write that the reconciler would make."""
    patch = status_patch(job.status, throttle_progress(job.status, plan.status))
    merged = merge(dump(job.status), patch or {})
    json.dumps(merged, allow_nan=False)
    assert list(violations(STATUS_SCHEMA, merged, ("status",))) == []
    return job.model_copy(update={"status": FinetuneJobStatus.model_validate(merged)})


def check_actions(job: FinetuneJob, observed: Observed, plan: Plan) -> None:
    """Every action is allowed by what is stored, never by what is only planned."""
    stored, cluster = job.status, observed.cluster
    for action in plan.actions:
        match action:
            case CreateCluster(attempt):
                assert cluster is None
                assert stored.attempt == attempt
                assert stored.ray is not None
            case Submit(attempt):
                assert stored.attempt == attempt
                assert not condition_is_true(stored, ConditionType.SUBMITTED)
                assert observed.ray_job.state == "Missing"
                assert cluster is not None
                assert cluster.owner_uid == UID
                assert cluster.head_ready
            case DeleteCluster(name, uid):
                assert stored.phase in TERMINAL
                assert cluster is not None
                assert (cluster.name, cluster.uid, cluster.owner_uid) == (name, uid, UID)
    assert len(plan.actions) <= 1


def check_verdict(job: FinetuneJob, observed: Observed, plan: Plan) -> None:
    """An end has a cause that was seen."""
    cluster, state = observed.cluster, observed.ray_job.state
    if job.status.phase in TERMINAL:
        assert plan.status == job.status
        return
    if plan.status.phase is Phase.SUCCEEDED:
        assert state == "SUCCEEDED"
        assert observed.progress is not None
        assert observed.progress.output is not None
    sound = cluster is not None and cluster.owner_uid == UID and not cluster.deleting and not cluster.head_lost
    if sound and state == "Unknown":
        assert plan.status.phase not in TERMINAL
    if plan.status.phase in TERMINAL:
        assert plan.actions == ()


@given(sequences)
def test_rules_that_no_sequence_of_observations_breaks(sequence: list[tuple[Observed, bool]]) -> None:
    job, now = make_job(), NOW
    for observed, came_through in sequence:
        plan = decide(job, observed, now)
        check_actions(job, observed, plan)
        check_verdict(job, observed, plan)
        assert plan.status.phase is not None
        assert plan.status.reason in set(Reason)
        assert plan.requeue_after is not None or job.status.phase in TERMINAL
        if came_through:
            job = store(job, plan)
        now += timedelta(seconds=7)


@given(observations, observations)
def test_deciding_again_on_what_was_stored_changes_nothing_more(first: Observed, second: Observed) -> None:
    job = make_job()
    for observed in (Observed(), first, second, second, second):
        job = store(job, decide(job, observed, NOW))
    assert status_patch(job.status, decide(job, second, NOW + timedelta(minutes=10)).status) is None


@given(observations)
def test_decide_is_a_pure_function(observed: Observed) -> None:
    job: Any = make_job(status=dump(decide(make_job(), Observed(), NOW).status))
    assert decide(job, observed, NOW) == decide(job, observed, NOW)
