"""``spec.suspend``: write a checkpoint and delete the pods; resume from the checkpoint when it is false again."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJob, FinetuneJobStatus, Phase, Reason
from finetune_operator.constants import STOP_GRACE_SECONDS
from finetune_operator.decide.ending import CLEAN_UP_SECONDS, attempt_ended
from finetune_operator.decide.plan import DeleteCluster, Plan, StopRun
from finetune_operator.observed import Cluster, Observed
from finetune_operator.status import condition_is_true, find_condition, set_condition, set_phase

STOP_POLL_SECONDS = 1.0
"""How often to look at a run that was asked to stop."""


def is_wanted(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed) -> bool:
    """Whether the job is to be suspended, or is being suspended. A run that has already succeeded is completed."""
    finished = observed.ray_job.state == "SUCCEEDED" and condition_is_true(status, ConditionType.SUBMITTED)
    return (job.spec.suspend or status.phase is Phase.SUSPENDING) and not finished


def suspend(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """Ask the run for a checkpoint, then delete the cluster, then wait."""
    cluster = observed.cluster
    if cluster is None or cluster.owner_uid != job.metadata.uid:
        return _suspended(status, now)
    if status.phase is not Phase.SUSPENDING or status.ray is None:
        ray = status.ray and status.ray.model_copy(update={"stop_time": now})
        status = status.model_copy(update={"ray": ray})
        status = set_phase(status, Phase.SUSPENDING, Reason.SUSPENDED_BY_USER, "the run is asked for a checkpoint")
        return Plan(set_condition(status, ConditionType.SUSPENDED, False, Reason.SUSPENDED_BY_USER, "", now), requeue_after=0)
    if not cluster.deleting and _still_stopping(status, observed, cluster, now):
        return Plan(status, (StopRun(status.attempt or 1),), requeue_after=STOP_POLL_SECONDS)
    status = status.model_copy(update=attempt_ended(status, Reason.SUSPENDED_BY_USER, now))
    actions = () if cluster.deleting else (DeleteCluster(cluster.name, cluster.uid),)
    status = set_phase(status, Phase.SUSPENDING, Reason.SUSPENDED_BY_USER, f"cluster {cluster.name} is being deleted")
    return Plan(status, actions, requeue_after=CLEAN_UP_SECONDS)


def _still_stopping(status: FinetuneJobStatus, observed: Observed, cluster: Cluster, now: datetime) -> bool:
    """Whether a checkpoint may still be written: the driver runs, or does not answer, and the grace period is not over."""
    if not condition_is_true(status, ConditionType.SUBMITTED) or cluster.head_lost or cluster.suspended or status.ray is None:
        return False
    since = status.ray.stop_time or now
    running = observed.ray_job.state in {"PENDING", "RUNNING", "Unknown"}
    return running and (now - since).total_seconds() < STOP_GRACE_SECONDS


def _suspended(status: FinetuneJobStatus, now: datetime) -> Plan:
    if status.phase is Phase.SUSPENDED:
        return Plan(status)
    message = "no pods; set spec.suspend to false to go on"
    if status.checkpoint is not None:
        message += f" from step {status.checkpoint.step}"
    status = status.model_copy(update=attempt_ended(status, Reason.SUSPENDED_BY_USER, now) | {"ray": None})
    for type_ in (ConditionType.SUBMITTED, ConditionType.PROGRESSING, ConditionType.CLUSTER_READY):
        if find_condition(status, type_) is not None:
            status = set_condition(status, type_, False, Reason.SUSPENDED_BY_USER, "", now)
    status = set_condition(status, ConditionType.SUSPENDED, True, Reason.SUSPENDED_BY_USER, "", now)
    return Plan(set_phase(status, Phase.SUSPENDED, Reason.SUSPENDED_BY_USER, message))
