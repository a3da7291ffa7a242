"""``spec.suspend``: write a checkpoint and delete the pods; resume from the checkpoint when it is false again."""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJob, FinetuneJobStatus, Phase, Reason
from finetune_operator.constants import STOP_GRACE_SECONDS
from finetune_operator.decide.ending import CLEAN_UP_SECONDS, attempt_ended, conditions_without_cluster
from finetune_operator.decide.fetching import stop_fetch
from finetune_operator.decide.plan import DeleteCluster, Plan, StopRun
from finetune_operator.decide.stopping import STOP_POLL_SECONDS, driver_runs
from finetune_operator.observed import Observed
from finetune_operator.status import condition_is_true, set_condition, set_phase


def is_wanted(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed) -> bool:
    """Whether the job is to be suspended, or is being suspended. A run that has already succeeded is completed."""
    finished = observed.ray_job.state == "SUCCEEDED" and condition_is_true(status, ConditionType.SUBMITTED)
    return (job.spec.suspend or status.phase is Phase.SUSPENDING) and not finished


def suspend(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan:
    """Ask the run for a checkpoint, then delete the cluster, then wait."""
    cluster = observed.cluster
    if (plan := stop_fetch(status, observed)) is not None:
        return plan
    if cluster is None or cluster.owner_uid != job.metadata.uid:
        return _suspended(status, now)
    if status.phase is not Phase.SUSPENDING or status.ray is None:
        ray = status.ray and status.ray.model_copy(update={"stop_time": now})
        status = status.model_copy(update={"ray": ray})
        status = set_phase(status, Phase.SUSPENDING, Reason.SUSPENDED_BY_USER, "the run is asked for a checkpoint")
        return Plan(set_condition(status, ConditionType.SUSPENDED, False, Reason.SUSPENDED_BY_USER, "", now), requeue_after=0)
    since = status.ray.stop_time or now
    if driver_runs(job, status, observed) and (now - since).total_seconds() < STOP_GRACE_SECONDS:
        return Plan(status, (StopRun(status.attempt or 1),), requeue_after=STOP_POLL_SECONDS)
    status = status.model_copy(update=attempt_ended(status, Reason.SUSPENDED_BY_USER, now))
    actions = () if cluster.deleting else (DeleteCluster(cluster.name, cluster.uid),)
    status = set_phase(status, Phase.SUSPENDING, Reason.SUSPENDED_BY_USER, f"cluster {cluster.name} is being deleted")
    return Plan(status, actions, requeue_after=CLEAN_UP_SECONDS)


def _suspended(status: FinetuneJobStatus, now: datetime) -> Plan:
    if status.phase is Phase.SUSPENDED:
        return Plan(status)
    message = "no pods; set spec.suspend to false to go on"
    if status.checkpoint is not None:
        message += f" from step {status.checkpoint.step}"
    status = status.model_copy(update=attempt_ended(status, Reason.SUSPENDED_BY_USER, now) | {"ray": None})
    status = conditions_without_cluster(status, Reason.SUSPENDED_BY_USER, now)
    status = set_condition(status, ConditionType.SUSPENDED, True, Reason.SUSPENDED_BY_USER, "", now)
    return Plan(set_phase(status, Phase.SUSPENDED, Reason.SUSPENDED_BY_USER, message))
