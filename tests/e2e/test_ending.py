"""A job that is stopped by its user or by the clock, and what is kept of a job that has ended."""

from __future__ import annotations

import math
import time
from datetime import datetime
from typing import Any

import pytest
from tests.e2e.conftest import Release
from tests.support.cluster import applied, change_spec, ended, job_status, step_of
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, after, wait_until

REST_SECONDS = 20

LONG = {"Training__max_train_steps": 100_000, "Training__num_training_workers": 1}


def test_a_cancelled_job_gives_its_pods_back_and_is_final(jobs: Kubectl) -> None:
    with applied(jobs, finetune_job("cancelled", **LONG)):
        wait_until("training", lambda: step_of(jobs, "cancelled"))
        change_spec(jobs, "cancelled", cancel=True)
        status = wait_until("the end", lambda: ended(jobs, "cancelled"))
        assert (status["phase"], status["reason"]) == ("Cancelled", "CancelledByUser")
        assert status["attemptHistory"][0]["lastStep"] > 0
        wait_until("its cluster to be gone", lambda: not jobs.list("rayclusters"))
        back = jobs.run("patch", "finetunejob", "cancelled", "--type=merge", "-p", '{"spec": {"cancel": false}}', check=False)
        assert "spec.cancel is final" in back.stderr


def test_a_deadline_ends_the_training_and_the_cluster_is_kept_as_long_as_was_said(jobs: Kubectl) -> None:
    """The deadline comes while it trains: a driver that is still importing is ended with its cluster."""
    job = finetune_job("late", **LONG, clusterTTLSeconds={"onFailure": 40})
    with applied(jobs, job):
        wait_until("training", lambda: step_of(jobs, "late"))
        change_spec(jobs, "late", activeDeadlineSeconds=5)
        status = wait_until("the end", lambda: ended(jobs, "late"))
        assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
        assert "spec.activeDeadlineSeconds, 5 s" in status["message"]
        assert _seconds(status["startTime"], status["completionTime"]) >= 5
        assert jobs.list("rayclusters"), "the cluster went before its time"
        wait_until("its cluster to be gone", lambda: not jobs.list("rayclusters"))


@pytest.mark.exclusive
def test_a_deadline_counts_training_only_whatever_happens_to_job_and_operator(jobs: Kubectl, release: Release) -> None:
    """Suspended after some seconds, and watched by another operator afterwards."""
    with applied(jobs, finetune_job("long", **LONG, activeDeadlineSeconds=3600)):
        wait_until("training", lambda: step_of(jobs, "long"))
        change_spec(jobs, "long", suspend=True)
        wait_until("Suspended", lambda: job_status(jobs, "long")["phase"] == "Suspended")
        before = job_status(jobs, "long")["activeSeconds"]
        wait_until("some seconds of rest", after(REST_SECONDS))
        resumed = time.monotonic()
        change_spec(jobs, "long", suspend=False)
        wait_until("training again", lambda: job_status(jobs, "long")["phase"] == "Running")
        release.kubectl.run("delete", "pod", "-l", "app.kubernetes.io/name=finetune-operator", "--wait=false")
        deadline = math.ceil(before + time.monotonic() - resumed) + 15
        change_spec(jobs, "long", activeDeadlineSeconds=deadline)
        status = wait_until("the end", lambda: ended(jobs, "long"))
        assert (status["phase"], status["reason"]) == ("Failed", "DeadlineExceeded")
        assert deadline <= status["activeSeconds"]
        spans = [_seconds(attempt["startTime"], attempt["endTime"]) for attempt in status["attemptHistory"]]
        assert sum(spans) == pytest.approx(status["activeSeconds"], abs=2)
        assert (
            _seconds(status["attemptHistory"][0]["startTime"], status["completionTime"])
            >= status["activeSeconds"] + REST_SECONDS - 2
        )


def test_a_job_that_cannot_start_in_time_says_what_it_waited_for_and_goes_by_itself(jobs: Kubectl) -> None:
    head = {"memory": "3Gi", "cpu": "200m", "nodeSelector": {"nowhere": "here"}}
    job = finetune_job("stuck", head=head, provisioningTimeoutSeconds=15, ttlSecondsAfterFinished=5)
    with applied(jobs, job):
        status = wait_until("the end", lambda: ended(jobs, "stuck"))
        assert (status["phase"], status["reason"]) == ("Failed", "ProvisioningTimeout")
        assert "node affinity/selector" in status["message"], status["message"]
        wait_until("the job to be gone", lambda: jobs.get("finetunejob", "stuck") is None)


def _seconds(start: Any, end: Any) -> float:
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()
