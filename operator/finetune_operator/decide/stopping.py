"""A job that has ended has no driver that runs: it is stopped before the phase is final."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJobStatus, JobIdentity, Phase, Reason
from finetune_operator.decide.ending import CLEAN_UP_SECONDS
from finetune_operator.decide.plan import DeleteCluster, Plan, StopRun
from finetune_operator.observed import Observed
from finetune_operator.status import condition_is_true, set_phase

STOP_POLL_SECONDS = 1.0
"""How often to look at a run that was asked to stop."""

END_GRACE_SECONDS = 60.0
"""Time for the driver of a job that is to end, for its last checkpoint; then its cluster is deleted, whatever is to be kept.
Shorter than that of a suspension, which is worth nothing without the checkpoint."""


def driver_runs(job: JobIdentity, status: FinetuneJobStatus, observed: Observed) -> bool:
    """Whether the driver of the current attempt runs, or may run since nothing is known of it."""
    cluster = observed.cluster
    if cluster is None or cluster.owner_uid != job.metadata.uid or status.ray is None:
        return False
    if cluster.deleting or cluster.head_lost or cluster.suspended:
        return False
    return condition_is_true(status, ConditionType.SUBMITTED) and observed.ray_job.state in {"PENDING", "RUNNING", "Unknown"}


def stop_first(job: JobIdentity, status: FinetuneJobStatus, plan: Plan, observed: Observed, now: datetime) -> Plan:
    """A plan; but if it ends the job and the driver runs, the one that stops the driver before that. Until then the job
    keeps its phase, and has reason and message of its end. `status` is the one before the plan.
    """
    ray, cluster = status.ray, observed.cluster
    if plan.status.phase not in TERMINAL or not driver_runs(job, status, observed) or ray is None or cluster is None:
        return plan
    status = set_phase(
        status, status.phase or Phase.PENDING, Reason(plan.status.reason or Reason.TRAINING_FAILED), plan.status.message or ""
    )
    if ray.stop_time is None:
        return Plan(status.model_copy(update={"ray": ray.model_copy(update={"stop_time": now})}), requeue_after=0)
    if (now - ray.stop_time).total_seconds() < END_GRACE_SECONDS:
        return Plan(status, (StopRun(status.attempt or 1),), requeue_after=STOP_POLL_SECONDS)
    return Plan(status, (DeleteCluster(cluster.name, cluster.uid),), requeue_after=CLEAN_UP_SECONDS)
