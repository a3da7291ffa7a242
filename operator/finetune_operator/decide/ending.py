"""How a job ends, and what happens afterwards: deadlines, and how long objects are kept."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from finetune_operator.api.v1alpha1 import (
    AttemptStatus,
    ConditionType,
    FinetuneJob,
    FinetuneJobStatus,
    JobIdentity,
    Phase,
    Reason,
)
from finetune_operator.constants import QUEUE_LABEL
from finetune_operator.decide.plan import Action, DeleteCluster, DeleteJob, DeletePod, Plan
from finetune_operator.desired.defaults import cluster_ttl
from finetune_operator.observed import Observed
from finetune_operator.status import find_condition, set_condition, set_phase

ATTEMPTS_KEPT = 5
"""Entries of status.attemptHistory."""

CLEAN_UP_SECONDS = 5.0
"""How often a deletion is repeated until the object is gone; usually an event comes sooner."""


def end(status: FinetuneJobStatus, phase: Phase, reason: Reason, message: str, now: datetime, **changes: Any) -> Plan:
    """End the job. A later reconcile deletes its cluster, after this is stored."""
    status = status.model_copy(update=attempt_ended(status, reason, now))
    status = conditions_without_cluster(status, reason, now)
    status = set_condition(status, ConditionType.PROGRESSING, False, reason, "", now)
    outcomes = {ConditionType.COMPLETE: phase is Phase.SUCCEEDED, ConditionType.FAILED: phase is Phase.FAILED}
    for type_, holds in outcomes.items():
        if holds or type_ is ConditionType.COMPLETE:
            status = set_condition(status, type_, holds, reason, message if holds else "", now)
    status = set_condition(status, ConditionType.FINISHED, True, reason, str(phase), now)
    status = set_phase(status, phase, reason, message)
    return Plan(status.model_copy(update={"completion_time": now} | changes), requeue_after=0)


def conditions_without_cluster(status: FinetuneJobStatus, reason: Reason, now: datetime) -> FinetuneJobStatus:
    """What is true of a job that has no pods, or is to have none."""
    for type_ in (ConditionType.SUBMITTED, ConditionType.PROGRESSING, ConditionType.CLUSTER_READY):
        if find_condition(status, type_) is not None:
            status = set_condition(status, type_, False, reason, "", now)
    if status.ray is None:
        return status
    workers = {"workers_ready": 0, "workers": f"0/{status.ray.workers_desired}"}
    return status.model_copy(update={"ray": status.ray.model_copy(update=workers)})


def fail(status: FinetuneJobStatus, reason: Reason, message: str, now: datetime) -> Plan:
    """End the job as Failed."""
    return end(status, Phase.FAILED, reason, message, now)


def attempt_ended(status: FinetuneJobStatus, reason: Reason, now: datetime) -> dict[str, Any]:
    """What changes in the status when its current attempt has ended; nothing when that was recorded before."""
    if status.ray is None or status.attempt is None or is_over(status):
        return {}
    started = training_since(status)
    attempt = AttemptStatus(
        attempt=status.attempt,
        cluster=status.ray.cluster,
        submission_id=status.ray.submission_id,
        start_time=started,
        end_time=now,
        reason=str(reason),
        last_step=status.progress.step if status.progress and status.progress.attempt == status.attempt else None,
    )
    seconds = round((now - started).total_seconds()) if started else 0
    return {
        "attempt_history": (*status.attempt_history, attempt)[-ATTEMPTS_KEPT:],
        "active_seconds": (status.active_seconds or 0) + seconds,
    }


def begin_again(status: FinetuneJobStatus, ended: Reason, message: str, now: datetime, why: Reason = Reason.RETRYING) -> Plan:
    """Record the end of the attempt; another one follows: see `attempts.retry`."""
    status = status.model_copy(update=attempt_ended(status, ended, now))
    for type_ in (ConditionType.SUBMITTED, ConditionType.PROGRESSING):
        status = set_condition(status, type_, False, why, "", now)
    return Plan(set_phase(status, Phase.RETRYING, why, message), requeue_after=0)


def is_over(status: FinetuneJobStatus) -> bool:
    """Whether the end of the current attempt is recorded."""
    return bool(status.attempt_history) and status.attempt_history[-1].attempt == status.attempt


def training_since(status: FinetuneJobStatus) -> datetime | None:
    """When the training of the current attempt was first seen to run. Status of a release before retries has that time
    for the job only.
    """
    if status.ray is None:
        return None
    return status.ray.start_time or (None if status.attempt_history else status.start_time)


def gave_back(status: FinetuneJobStatus) -> int:
    """How many of the last attempts have given their pods back to an older job, since no node accepted all of them."""
    count = 0
    for attempt in reversed(status.attempt_history):
        if attempt.reason != Reason.UNSCHEDULABLE:
            break
        count += 1
    return count


def _begun_at(status: FinetuneJobStatus) -> datetime | None:
    """When the wait for the current attempt's start began; as above. Attempts that gave their pods back have waited, too."""
    accepted = find_condition(status, ConditionType.VALIDATED)
    if status.ray is None or accepted is None or accepted.status != "True":
        return None
    count = gave_back(status)
    if not count:
        return status.ray.request_time or accepted.last_transition_time
    earlier = status.attempt_history[:-count]
    return earlier[-1].end_time if earlier else accepted.last_transition_time


def within_deadlines(job: FinetuneJob, stored: FinetuneJobStatus, plan: Plan, now: datetime) -> Plan:
    """Apply the deadlines to a plan that does not end the job: end it if one is over, else look again when the next is due.

    The plan comes first: a run that has started or ended meanwhile is not failed by a clock that was looked at late, as
    after a restart.
    """
    deadlines = _deadlines(job, plan.status, stored.message or "")
    for due, reason, message in deadlines:
        if now >= due:
            return fail(plan.status, reason, message, now)
    for due, _, _ in deadlines:
        plan = plan.due_within((due - now).total_seconds())
    return plan


def _deadlines(job: FinetuneJob, status: FinetuneJobStatus, waited_for: str) -> list[tuple[datetime, Reason, str]]:
    """When it is over, with which reason and message. Times are the status's own, so a restart changes nothing. Neither
    clock runs in a queue, or while there is no attempt: suspended, or in the pause before a retry.
    """
    provisioning, active = job.spec.provisioning_timeout_seconds, job.spec.active_deadline_seconds
    since, begun = training_since(status), _begun_at(status)
    if status.phase is Phase.QUEUED or (is_over(status) and not gave_back(status)):
        return []
    if since is not None:
        message = f"the training took longer than spec.activeDeadlineSeconds, {active} s"
        due = since - timedelta(seconds=status.active_seconds or 0)
        return [(due + timedelta(seconds=active), Reason.DEADLINE_EXCEEDED, message)] if active else []
    if provisioning is None or begun is None:
        return []
    message = f"the training did not start within spec.provisioningTimeoutSeconds, {provisioning} s: {waited_for}"
    return [(begun + timedelta(seconds=provisioning), Reason.PROVISIONING_TIMEOUT, message)]


def after_the_end(job: JobIdentity, observed: Observed, now: datetime) -> Plan:
    """Delete the cluster and then the job itself, each when its time has come. Of the status only observedGeneration may
    still change: GitOps tools wait for it.
    """
    status = job.status.model_copy(update={"observed_generation": job.metadata.generation})
    cluster_ttl, job_ttl = _times_to_live(job)
    if QUEUE_LABEL in job.metadata.labels:
        cluster_ttl = 0  # Kueue takes no RayCluster for finished: its quota is free only when it is gone
    ended = job.status.completion_time or now
    dues: list[tuple[datetime, Action]] = []
    cluster = observed.cluster
    if cluster is not None and cluster.owner_uid == job.metadata.uid and not cluster.deleting:
        dues.append((ended + timedelta(seconds=cluster_ttl), DeleteCluster(cluster.name, cluster.uid)))
    pod = observed.fetch
    if pod is not None and not pod.deleting:
        kept = cluster_ttl if pod.finished else 0
        dues.append((ended + timedelta(seconds=kept), DeletePod(pod.name, pod.uid)))
    if job_ttl is not None:
        dues.append((ended + timedelta(seconds=job_ttl), DeleteJob()))
    actions = tuple(action for due, action in dues if due <= now)
    rests = [(due - now).total_seconds() for due, _ in dues if due > now] + [CLEAN_UP_SECONDS] * bool(actions)
    return Plan(status, actions, requeue_after=min(rests) if rests else None)


def _times_to_live(job: JobIdentity) -> tuple[int, int | None]:
    """Seconds that the cluster and the job are kept: of a job that is being deleted, or whose spec cannot be read, nothing."""
    if not isinstance(job, FinetuneJob) or job.metadata.deletion_timestamp is not None:
        return 0, None
    ttl = cluster_ttl(job)
    kept = ttl.on_success if job.status.phase is Phase.SUCCEEDED else ttl.on_failure
    return kept, job.spec.ttl_seconds_after_finished
