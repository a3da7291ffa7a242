"""Kueue's say: waiting, giving way, and going on, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import KEYS, SETTINGS, UID, make_cluster, make_job, make_observed
from tests.unit.test_attempts import Life, running

from finetune_operator.api.v1alpha1 import Phase
from finetune_operator.constants import QUEUE_LABEL, SCHEDULING_LABELS
from finetune_operator.decide import DeleteCluster, Submit
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.observed import Observed, queue_message

HELD = make_cluster(suspended=True, head_ready=False, workers_ready=0)
WORDS = "couldn't assign flavors to pod set head: insufficient unused quota for memory"


def held(**changes: Any) -> Observed:
    return Observed(cluster=replace(HELD, **changes), queue=WORDS)


def queued(**spec: Any) -> Life:
    """A job whose cluster was made, and is held back."""
    life = Life(make_job(spec=spec, metadata={"labels": {QUEUE_LABEL: "team"}}))
    life.see(Observed())
    life.see(Observed())
    life.see(held())
    assert (life.phase, life.job.status.reason) == (Phase.QUEUED, "Queued")
    return life


def test_a_queued_job_says_why_and_no_deadline_counts() -> None:
    life = queued(provisioningTimeoutSeconds=60)
    assert life.job.status.message == f"cluster demo-1f0c3-1 waits for quota: {WORDS}"
    stored = life.job.status
    assert life.see(held(), after=86400).status == stored
    life.see(make_observed("Unknown", cluster=replace(HELD, suspended=False)))
    assert (life.phase, life.job.status.reason) == (Phase.PROVISIONING, "Admitted")
    assert life.see(make_observed(cluster=replace(HELD, suspended=False)), after=59).status.phase is Phase.PROVISIONING
    late = life.see(make_observed(cluster=replace(HELD, suspended=False)), after=1)
    assert late.status.reason == "ProvisioningTimeout"


def test_an_admitted_job_is_submitted_as_its_first_attempt() -> None:
    life = queued()
    life.see(make_observed("Missing"))
    assert life.see(make_observed("Missing")).actions == (Submit(1),)


def test_a_preempted_run_is_followed_by_another_attempt_on_the_same_cluster_that_does_not_count() -> None:
    life = running(retryPolicy={"maxAttempts": 1}, activeDeadlineSeconds=100)
    life.see(make_observed("RUNNING", cluster=make_cluster(suspended=True)))
    assert (life.phase, life.job.status.reason, life.job.status.attempt_history) == (Phase.QUEUED, "Preempted", ())
    life.see(held(head_lost=True), after=5)
    (attempt,) = life.job.status.attempt_history
    assert (attempt.reason, attempt.last_step) == ("Preempted", 10)
    assert life.see(held(), after=86400).status.phase is Phase.QUEUED
    life.see(make_observed("Unknown", cluster=replace(HELD, suspended=False)))
    ray = life.job.status.ray
    assert ray is not None
    assert (life.job.status.attempt, ray.cluster, ray.submission_id) == (2, "demo-1f0c3-1", f"{UID}-a2")
    assert life.see(make_observed("Missing")).actions == (Submit(2),)
    assert life.see(make_observed("RUNNING")).status.phase is Phase.RUNNING
    assert life.job.status.failed_attempts is None


def test_a_queue_that_changes_its_mind_before_the_head_is_gone_ends_nothing() -> None:
    life = running()
    life.see(make_observed("RUNNING", cluster=make_cluster(suspended=True)))
    life.see(make_observed("RUNNING"))
    life.see(make_observed("RUNNING"))
    assert (life.phase, life.job.status.attempt, life.job.status.attempt_history) == (Phase.RUNNING, 1, ())


def test_a_queued_job_can_be_suspended_and_its_cluster_goes_at_once() -> None:
    life = queued()
    life.change(suspend=True)
    life.see(held())
    assert life.see(held()).actions == (DeleteCluster(HELD.name, HELD.uid),)
    life.see(Observed())
    assert life.phase is Phase.SUSPENDED


def test_the_cluster_of_a_queued_job_is_never_kept_since_it_would_keep_its_quota() -> None:
    life = queued(clusterTTLSeconds={"onFailure": 600})
    life.change(cancel=True)
    life.see(held())
    assert life.see(held()).actions == (DeleteCluster(HELD.name, HELD.uid),)


def test_labels_of_queues_and_schedulers_are_passed_on_and_others_are_not() -> None:
    labels = {name: f"value-{number}" for number, name in enumerate(SCHEDULING_LABELS)}
    job = make_job(metadata={"labels": labels | {"team": "blue", "llmonray.dev/finetunejob": "another"}})
    made = build_ray_cluster(job, 1, SETTINGS, KEYS)["metadata"]["labels"]
    assert {name: made[name] for name in labels} == labels
    assert "team" not in made
    assert made["llmonray.dev/finetunejob"] == "demo"


@pytest.mark.parametrize(
    ("conditions", "words"),
    [
        ([], ""),
        ([{"type": "QuotaReserved", "status": "False", "message": WORDS}], WORDS),
        ([{"type": "QuotaReserved", "status": "True", "message": "reserved"}], ""),
        (
            [
                {"type": "QuotaReserved", "status": "False", "message": WORDS},
                {"type": "Preempted", "status": "True", "message": "for a workload of higher priority"},
            ],
            f"for a workload of higher priority; {WORDS}",
        ),
    ],
    ids=["nothing yet", "waits", "admitted", "preempted"],
)
def test_the_words_of_the_workload(conditions: list[dict[str, str]], words: str) -> None:
    assert queue_message({"status": {"conditions": conditions}}) == words
