"""Attempts at a job's run: how one begins, how one ends, and when another follows.

After a failure of the trainer on a healthy Ray cluster, the next attempt uses that cluster with a new submission id.
After the loss of the cluster it uses a new one. The trainer itself resumes from its newest complete checkpoint.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta

from finetune_operator.api.v1alpha1 import FinetuneJob, FinetuneJobStatus, Phase, RayStatus, Reason, RetryPolicy
from finetune_operator.decide import sharing
from finetune_operator.decide.ending import CLEAN_UP_SECONDS, attempt_ended, begin_again, fail
from finetune_operator.decide.plan import DeleteCluster, Plan
from finetune_operator.desired import naming
from finetune_operator.desired.defaults import retry_policy
from finetune_operator.observed import Cluster, Observed
from finetune_operator.status import output_status, set_phase

MENDED_BY_A_RETRY = frozenset({Reason.TRAINING_FAILED, Reason.HEAD_LOST, Reason.WORKER_LOST, Reason.EVICTED, Reason.POD_FAILED})
"""Failures that another attempt may avoid. Others, such as a broken row, too little memory or a NaN loss, would recur."""


_NEEDS_NEW_CLUSTER = frozenset({Reason.HEAD_LOST, Reason.UNSCHEDULABLE})
"""Ends of an attempt after which its cluster is deleted, even if it looks healthy."""

PODS_GONE_SECONDS = 60.0
"""How long to wait for the end of a lost cluster's pods, so that two attempts do not write at the same time. Pods of a dead
node may never end."""


def begin_attempt(job: FinetuneJob, status: FinetuneJobStatus, cluster: str | None, now: datetime) -> FinetuneJobStatus:
    """Store the next attempt, on a cluster that is there or on one of its own, before anything is made for it."""
    attempt = (status.attempt or 0) + 1
    workers = job.spec.config.training.num_training_workers
    ray = RayStatus(
        cluster=cluster or naming.cluster_name(job, attempt),
        submission_id=naming.submission_id(job, attempt),
        workers_desired=workers,
        workers=f"0/{workers}",
        request_time=now,
    )
    output = status.output or output_status(naming.output_claim_name(job), naming.output_path(job), None)
    return status.model_copy(update={"attempt": attempt, "ray": ray, "output": output})


def attempt_failed(
    job: FinetuneJob, status: FinetuneJobStatus, reason: Reason, message: str, now: datetime, *, recurs: bool = False
) -> Plan:
    """Plan another attempt, or end the job if none is left, or if none would help: by the reason, or as `recurs` says."""
    policy = retry_policy(job)
    count = (status.failed_attempts or 0) + 1
    if count > 1:
        message = f"attempt {count} of {policy.max_attempts}: {message}"
    status = status.model_copy(update={"failed_attempts": count})
    deadline, active = job.spec.active_deadline_seconds, attempt_ended(status, reason, now).get("active_seconds", 0)
    if deadline is not None and active >= deadline:
        return fail(status, reason, f"{message}; spec.activeDeadlineSeconds, {deadline} s, are used up", now)
    if recurs or reason not in MENDED_BY_A_RETRY or count >= policy.max_attempts:
        return fail(status, reason, message, now)
    message = f"attempt {count + 1} of {policy.max_attempts} begins in {pause_seconds(policy, count)} s; {reason}: {message}"
    return begin_again(status, reason, message, now)


def retry(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """Wait until the pause is over, delete a lost cluster, and begin the next attempt."""
    if not status.attempt_history:
        # Somebody has edited the status: nothing is known of the last attempt, so its cluster is not used again.
        status = status.model_copy(update=attempt_ended(status, Reason.HEAD_LOST, now))
    cluster, last = observed.cluster, status.attempt_history[-1]
    reusable = last.reason not in _NEEDS_NEW_CLUSTER and cluster is not None and _is_healthy(cluster)
    if cluster is not None and not reusable:
        actions = () if cluster.deleting else (DeleteCluster(cluster.name, cluster.uid),)
        return Plan(status, actions, requeue_after=CLEAN_UP_SECONDS)
    if observed.pods and not reusable and now < last.end_time + timedelta(seconds=PODS_GONE_SECONDS):
        return Plan(status, requeue_after=1.0)
    pause, look = float(pause_seconds(retry_policy(job), status.failed_attempts or 1)), math.inf
    if last.reason == Reason.UNSCHEDULABLE:
        pause, look = sharing.pause_seconds(status, observed), sharing.LOOK_SECONDS
    due = last.end_time + timedelta(seconds=pause)
    if now < due:
        return Plan(status, requeue_after=min((due - now).total_seconds(), look))
    status = begin_attempt(job, status, cluster.name if cluster is not None else None, now)
    where = f"on cluster {status.ray.cluster}" if status.ray else ""
    status = set_phase(status, Phase.PENDING, Reason.ACCEPTED, f"attempt {status.attempt} begins {where}")
    return Plan(status, requeue_after=0)


def _is_healthy(cluster: Cluster) -> bool:
    return cluster.head_ready and not cluster.head_lost and not cluster.deleting


def pause_seconds(policy: RetryPolicy, failed: int) -> int:
    """Pause after so many failures."""
    return int(min(policy.backoff_seconds * 2 ** (failed - 1), policy.max_backoff_seconds))
