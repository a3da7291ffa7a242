"""The state machine as a table: stored status and observation → next status, actions, pause."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
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
    make_pod,
    make_progress,
)

from finetune_operator.api.v1alpha1 import AttemptStatus, ConditionType, FinetuneJobStatus, Phase, Reason, dump
from finetune_operator.decide import CreateCluster, DeleteCluster, Plan, Submit, decide
from finetune_operator.observed import Missing, Observed, RayJob
from finetune_operator.status import condition_is_true, find_condition

STARTING = make_cluster(head_ready=False, workers_ready=0)
SUBMITTED = begun(Phase.PROVISIONING, submitted=True)
RUNNING = begun(Phase.RUNNING, submitted=True, start_time=NOW)
FINISHED = make_progress(**finished_progress())
OOM = make_pod(trouble=Reason.WORKER_OOM_KILLED, detail="container ray-worker ran out of its memory limit")
ONE_READY = make_observed("RUNNING", cluster=make_cluster(workers_ready=1))
PULL = make_pod(trouble=Reason.IMAGE_PULL_FAILED, detail="registry.example/trainer:1: not found")
NO_NODE = make_pod("a", trouble=Reason.UNSCHEDULABLE, detail="0/3 nodes are available: 3 Insufficient gpu.intel.com/i915.")
CLAIM_A, CLAIM_B = (Missing.of_kind("PersistentVolumeClaim", key, name, "team") for key, name in (("a", "one"), ("b", "two")))
ROWS = Missing.of_kind("ConfigMap", "dataset.configMap", "rows", "team")


@dataclass(frozen=True)
class Expect:
    """What a plan must hold; None of a field means it does not matter."""

    phase: Phase
    reason: Reason | str
    actions: tuple[Any, ...] = ()
    says: str = ""
    again: float | None = None


VERIFIED = AttemptStatus(attempt=1, cluster="demo-1f0c3-1", submission_id="s", end_time=NOW, reason="OutputMissing")


def ended_at(time: datetime, **changes: Any) -> FinetuneJobStatus:
    """A running job whose end was first seen at that time."""
    assert RUNNING.ray is not None
    return RUNNING.model_copy(update={"ray": RUNNING.ray.model_copy(update={"end_time": time})} | changes)


def failed(reason: Reason, says: str = "") -> Expect:
    return Expect(Phase.FAILED, reason, says=says, again=0)


def retrying(reason: Reason, says: str = "") -> Expect:
    return Expect(Phase.RETRYING, Reason.RETRYING, says=f"attempt 2 of 3 begins in 10 s; {reason}: {says}", again=0)


def starting(reason: Reason = Reason.CLUSTER_STARTING, says: str = "", again: float | None = None, **parts: Any) -> Expect:
    return Expect(Phase.PROVISIONING, reason, says=says, again=again, **parts)


def running(reason: Reason, says: str = "", again: float | None = None) -> Expect:
    return Expect(Phase.RUNNING, reason, says=says, again=again)


BEGIN = [
    pytest.param(None, Observed(), Expect(Phase.PENDING, Reason.ACCEPTED, says="demo-1f0c3-1", again=0), id="new: intent first"),
    pytest.param(
        None,
        Observed(missing=(Missing.of_kind("PersistentVolumeClaim", "output.persistentVolumeClaim", "out", "team"),)),
        Expect(
            Phase.PENDING,
            Reason.CLAIM_NOT_FOUND,
            says="PersistentVolumeClaim 'out' (spec.output.persistentVolumeClaim) does not exist in namespace 'team'",
            again=5,
        ),
        id="missing claim is named with its key",
    ),
    pytest.param(
        None,
        Observed(missing=(CLAIM_A, CLAIM_B, ROWS)),
        Expect(Phase.PENDING, Reason.CLAIM_NOT_FOUND, says="; ".join(missing.message for missing in (CLAIM_A, CLAIM_B, ROWS))),
        id="all that is missing is named at once",
    ),
    pytest.param(
        None,
        Observed(missing=(ROWS,)),
        Expect(Phase.PENDING, Reason.CONFIG_MAP_NOT_FOUND, says="ConfigMap 'rows' (spec.dataset.configMap)", again=5),
        id="missing ConfigMap",
    ),
    pytest.param(
        FinetuneJobStatus(phase=Phase.PENDING, reason="ClaimNotFound", message="x"),
        Observed(),
        Expect(Phase.PENDING, Reason.ACCEPTED, again=0),
        id="claim has come: intent, no action yet",
    ),
]

PROVISION = [
    pytest.param(
        begun(),
        Observed(),
        Expect(Phase.PENDING, "Accepted", (CreateCluster(1),), again=0),
        id="intent stored: create the cluster",
    ),
    pytest.param(
        begun(),
        Observed(problem=(Reason.QUOTA_EXCEEDED, "exceeded quota: team")),
        Expect(Phase.PENDING, Reason.QUOTA_EXCEEDED, says="exceeded quota: team", again=5),
        id="creation refused: said, and tried again later",
    ),
    pytest.param(
        begun(),
        make_observed("Missing", problem=(Reason.SUBMISSION_FAILED, "Ray refused")),
        starting(Reason.SUBMISSION_FAILED, says="Ray refused", again=5),
        id="submission refused: said, and tried again later",
    ),
    pytest.param(
        begun(),
        make_observed(cluster=make_cluster(owner_uid=OTHER_UID)),
        failed(Reason.NAME_CONFLICT, "RayCluster demo-1f0c3-1 exists and belongs to somebody else"),
        id="a foreign cluster is never adopted",
    ),
    pytest.param(
        begun(), make_observed(cluster=make_cluster(owner_uid=None)), failed(Reason.NAME_CONFLICT), id="nor one without owner"
    ),
    pytest.param(
        begun(), make_observed(cluster=STARTING), starting(says="head not ready, 0/2 workers", again=5), id="head not ready"
    ),
    pytest.param(begun(), make_observed(cluster=make_cluster(deleting=True)), starting(again=5), id="cluster is going: wait"),
    pytest.param(
        begun(), make_observed(cluster=STARTING, pods=(NO_NODE, PULL)), starting(NO_NODE.trouble, NO_NODE.detail), id="pod"
    ),
    pytest.param(
        begun(),
        make_observed(cluster=STARTING, pods=(NO_NODE, make_pod("z", is_head=True, trouble=Reason.IMAGE_PULL_FAILED))),
        starting(Reason.IMAGE_PULL_FAILED, "pod z"),
        id="the head's trouble before a worker's",
    ),
    pytest.param(
        begun(),
        make_observed(cluster=make_cluster(head_ready=False, message='pods "x" is forbidden: exceeded quota: team')),
        starting(Reason.QUOTA_EXCEEDED, "exceeded quota: team"),
        id="quota exceeded for pods",
    ),
    pytest.param(
        begun(),
        make_observed(cluster=make_cluster(head_ready=False, message="webhook said no")),
        starting(says="webhook said no"),
        id="what KubeRay says is passed on",
    ),
    pytest.param(begun(), make_observed("Missing"), starting(actions=(Submit(1),), again=0), id="head ready, id unknown: submit"),
    pytest.param(
        begun(),
        make_observed("Missing", cluster=make_cluster(workers_ready=0)),
        starting(actions=(Submit(1),)),
        id="submit does not wait for workers",
    ),
    pytest.param(begun(), make_observed("Unknown"), starting(again=0.5), id="dashboard silent: never submit, never fail"),
    pytest.param(begun(), make_observed("PENDING"), starting(again=0.5), id="submitted, driver not started"),
    pytest.param(begun(), make_observed("RUNNING"), running(Reason.TRAINING_STARTING), id="submitted and running"),
    pytest.param(begun(), make_observed("FAILED"), retrying(Reason.TRAINING_FAILED), id="submitted and failed at once"),
]

FOLLOW = [
    pytest.param(SUBMITTED, make_observed("PENDING"), starting(again=0.5), id="pending"),
    pytest.param(SUBMITTED, make_observed("Unknown"), starting(again=0.5), id="Unknown before it ran is no failure"),
    pytest.param(
        SUBMITTED,
        make_observed("RUNNING", cluster=make_cluster(workers_ready=1)),
        starting(says="1/2 workers ready", again=1),
        id="driver runs, workers start",
    ),
    pytest.param(
        SUBMITTED, make_observed("RUNNING"), running(Reason.TRAINING_STARTING, "2 workers on cluster demo-1f0c3-1"), id="runs"
    ),
    pytest.param(
        RUNNING, make_observed("RUNNING", progress=make_progress()), running(Reason.TRAINING_RUNNING, again=2), id="steps"
    ),
    pytest.param(
        RUNNING,
        make_observed("Unknown"),
        running(Reason.TRAINING_STARTING, "2 workers on cluster demo-1f0c3-1"),
        id="Unknown keeps it Running",
    ),
    pytest.param(RUNNING, ONE_READY, running(Reason.TRAINING_STARTING, "1/2 workers"), id="a worker is not ready for a moment"),
    pytest.param(
        RUNNING, replace(ONE_READY, lost=(OOM,)), running(Reason.WORKER_LOST, f"a worker was lost: pod {OOM.name}: "), id="lost"
    ),
    pytest.param(
        RUNNING, replace(ONE_READY, lost=(OOM,), pods=(NO_NODE,)), running(Reason.UNSCHEDULABLE, "0/3 nodes"), id="no new one"
    ),
    pytest.param(
        RUNNING,
        make_observed(cluster=make_cluster(head_ready=False)),
        running(Reason.TRAINING_STARTING),
        id="head not ready, not lost",
    ),
    pytest.param(RUNNING, Observed(), retrying(Reason.HEAD_LOST, "RayCluster demo-1f0c3-1 was deleted"), id="cluster gone"),
    pytest.param(RUNNING, make_observed(cluster=make_cluster(deleting=True)), retrying(Reason.HEAD_LOST), id="cluster going"),
    pytest.param(
        RUNNING, make_observed(cluster=make_cluster(head_lost=True)), retrying(Reason.HEAD_LOST, "the head pod"), id="head lost"
    ),
    pytest.param(RUNNING, make_observed("Missing"), retrying(Reason.HEAD_LOST), id="id forgotten: lost, never submitted again"),
    pytest.param(SUBMITTED, make_observed("Missing"), retrying(Reason.HEAD_LOST), id="forgotten before it ran: never again"),
    pytest.param(
        RUNNING,
        make_observed(cluster=make_cluster(owner_uid=OTHER_UID)),
        failed(Reason.NAME_CONFLICT),
        id="cluster replaced by another",
    ),
    pytest.param(
        RUNNING,
        make_observed("FAILED", progress=make_progress(failure={"reason": "DatasetInvalid", "message": "line 3: no JSON"})),
        failed(Reason.DATASET_INVALID, "line 3: no JSON"),
        id="the trainer's own word",
    ),
    pytest.param(
        RUNNING,
        make_observed("FAILED", pods=(OOM,), progress=make_progress(failure={"reason": "TrainingFailed", "message": "lost"})),
        failed(Reason.WORKER_OOM_KILLED, "pod demo-1f0c3-1-workers-worker-a: container ray-worker ran out"),
        id="OOM explains more than the trainer can know",
    ),
    pytest.param(
        RUNNING,
        make_observed("FAILED", pods=(NO_NODE, OOM)),
        failed(Reason.WORKER_OOM_KILLED),
        id="OOM of one worker, another's replacement unschedulable",
    ),
    pytest.param(
        RUNNING, make_observed("FAILED", ray_message="exit 137"), retrying(Reason.TRAINING_FAILED, "exit 137"), id="Ray's word"
    ),
    pytest.param(
        RUNNING,
        make_observed("FAILED"),
        retrying(Reason.TRAINING_FAILED, "the trainer ended without a word"),
        id="no word at all",
    ),
    pytest.param(
        RUNNING,
        make_observed("STOPPED"),
        retrying(Reason.TRAINING_FAILED, "the Ray job was stopped by somebody else"),
        id="stopped",
    ),
    pytest.param(
        RUNNING,
        make_observed("SUCCEEDED"),
        running(Reason.TRAINING_RUNNING, "waiting for its manifest", again=0.5),
        id="no report yet",
    ),
    pytest.param(
        RUNNING,
        make_observed("SUCCEEDED"),
        running(Reason.TRAINING_RUNNING, "waiting for its manifest", again=0.5),
        id="no report when the end is first seen, whenever that was",
    ),
    pytest.param(
        ended_at(NOW - timedelta(seconds=121)),
        make_observed("SUCCEEDED"),
        Expect(Phase.RETRYING, Reason.RETRYING, says="another attempt verifies the output", again=0),
        id="a report that does not come is looked for by another attempt",
    ),
    pytest.param(
        ended_at(NOW - timedelta(seconds=121), attempt=2, attempt_history=(VERIFIED,)),
        make_observed("SUCCEEDED"),
        failed(Reason.OUTPUT_MISSING, "its last report cannot be read"),
        id="a report that never comes is not looked for for ever",
    ),
    pytest.param(
        RUNNING,
        make_observed("SUCCEEDED", progress=make_progress(step=20, percent=100)),
        failed(Reason.OUTPUT_MISSING, "left no manifest"),
        id="SUCCEEDED without manifest is Failed",
    ),
    pytest.param(
        RUNNING,
        make_observed("SUCCEEDED", progress=FINISHED),
        Expect(Phase.SUCCEEDED, Reason.COMPLETED, says=f"peft-adapter on claim demo-1f0c3-output, folder demo-{UID}", again=0),
        id="SUCCEEDED with manifest",
    ),
    pytest.param(
        begun(),
        make_observed("SUCCEEDED", progress=FINISHED),
        Expect(Phase.SUCCEEDED, Reason.COMPLETED),
        id="first seen at its end, after a restart",
    ),
]


@pytest.mark.parametrize(("status", "observed", "expected"), [*BEGIN, *PROVISION, *FOLLOW])
def test_decision(status: FinetuneJobStatus | None, observed: Observed, expected: Expect) -> None:
    plan = decide(make_job(status=status), observed, NOW)
    assert (plan.status.phase, plan.status.reason, plan.actions) == (expected.phase, expected.reason, expected.actions)
    assert expected.says in (plan.status.message or "")
    if expected.again is not None:
        assert plan.requeue_after == expected.again
    assert plan.status.observed_generation == 1
    assert (plan.status.completion_time == NOW) == (expected.phase in {Phase.FAILED, Phase.SUCCEEDED})


def terminal(phase: Phase) -> FinetuneJobStatus:
    return begun(phase, submitted=True, completion_time=NOW)


@pytest.mark.parametrize("phase", [Phase.SUCCEEDED, Phase.FAILED])
@pytest.mark.parametrize("state", ["Unknown", "Missing", "RUNNING", "FAILED", "SUCCEEDED"])
def test_terminal_is_final_and_only_deletes_its_own_cluster_by_uid(phase: Phase, state: Any) -> None:
    job = make_job(status=terminal(phase))
    plan = decide(job, make_observed(state, progress=FINISHED, pods=(OOM,)), NOW)
    assert (plan.status, plan.actions) == (job.status, (DeleteCluster("demo-1f0c3-1", CLUSTER_UID),))
    assert plan.requeue_after == 5


@pytest.mark.parametrize(
    "cluster", [None, make_cluster(owner_uid=OTHER_UID), make_cluster(owner_uid=None), make_cluster(deleting=True)]
)
def test_terminal_leaves_alone_what_is_gone_going_or_foreign(cluster: Any) -> None:
    job = make_job(status=terminal(Phase.FAILED))
    assert decide(job, Observed(cluster=cluster), NOW) == Plan(job.status)


def test_the_first_attempt_is_stored_with_its_names_before_anything_is_made() -> None:
    plan = decide(make_job(), Observed(), NOW)
    status = dump(plan.status)
    assert plan.actions == ()
    assert status["attempt"] == 1
    assert status["ray"]["cluster"] == "demo-1f0c3-1"
    assert status["ray"]["submissionId"] == f"{UID}-a1"
    assert status["output"] == {"persistentVolumeClaim": "demo-1f0c3-output", "path": f"demo-{UID}"}
    assert condition_is_true(plan.status, ConditionType.VALIDATED)


def test_keys_without_effect_are_named_when_the_job_is_accepted() -> None:
    spec = {"config": {"General": {"gpt_base_model": None}, "Training": {"optimizer": "adamw_hf"}}}
    validated = find_condition(decide(make_job(spec=spec), Observed(), NOW).status, ConditionType.VALIDATED)
    assert validated is not None
    assert validated.message == "Training.optimizer: adamw_hf is gone from current releases; AdamW takes its place"
    obsolete = find_condition(decide(make_job(), Observed(), NOW).status, ConditionType.VALIDATED)
    assert obsolete is not None
    assert obsolete.message.startswith("General.gpt_base_model: obsolete and ignored: ")


def test_nothing_is_said_of_a_job_whose_keys_all_have_an_effect() -> None:
    accepted = decide(make_job("gpu_i915"), Observed(), NOW).status
    assert [(item.status, item.reason, item.message) for item in accepted.conditions] == [("True", "Accepted", "")]


def test_a_submission_that_ray_knows_is_stored_as_submitted_with_the_dashboard() -> None:
    plan = decide(make_job(status=begun()), make_observed("PENDING"), NOW)
    assert condition_is_true(plan.status, ConditionType.SUBMITTED)
    assert dump(plan.status)["ray"]["dashboardURL"] == "http://demo-1f0c3-1-head-svc.team.svc:8265"


def test_planning_a_submission_does_not_yet_claim_that_it_happened() -> None:
    plan = decide(make_job(status=begun()), make_observed("Missing"), NOW)
    assert not condition_is_true(plan.status, ConditionType.SUBMITTED)


def test_success_tells_the_output_and_how_good_the_model_is() -> None:
    status = dump(decide(make_job(status=RUNNING), make_observed("SUCCEEDED", progress=FINISHED), NOW).status)
    assert status["output"]["format"] == "peft-adapter"
    assert (status["output"]["sizeBytes"], status["output"]["manifestSHA256"]) == (1234, "ab" * 32)
    assert status["result"] == {"trainLoss": 1.5, "firstLoss": 3.0, "evalLoss": 1.75, "perplexity": 5.75}
    assert status["progress"]["display"] == "100%"
    assert {item["type"]: item["status"] for item in status["conditions"]} == {
        "Validated": "True", "Submitted": "False", "Progressing": "False", "Complete": "True", "Finished": "True",
    }  # fmt: skip


def test_failure_keeps_the_last_progress_and_says_so_in_conditions() -> None:
    observed = make_observed("FAILED", progress=make_progress(failure={"reason": "LossNotFinite", "message": "at step 10"}))
    status = decide(make_job(status=RUNNING), observed, NOW).status
    assert status.progress is not None
    assert status.progress.step == 10
    conditions = {item.type: (item.status, item.reason) for item in status.conditions}
    assert conditions["Failed"] == ("True", "LossNotFinite")
    assert conditions["Complete"] == conditions["Progressing"] == ("False", "LossNotFinite")


def test_start_time_is_when_training_was_first_seen() -> None:
    first = decide(make_job(status=SUBMITTED), make_observed("RUNNING"), NOW).status
    assert first.start_time == NOW
    later = decide(make_job(status=first), make_observed("RUNNING"), NOW.replace(year=2027)).status
    assert later.start_time == NOW


def test_a_failed_poll_is_no_state_of_a_job() -> None:
    assert Observed().ray_job == RayJob("Unknown")
