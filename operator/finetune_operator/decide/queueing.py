"""Kueue: it holds a RayCluster back, or removes its pods, and admits it.

It sees the RayCluster by a label and sets its ``spec.suspend``; `status.state` is not asked, since it reads ``suspended``
while admitted pods start (https://kueue.sigs.k8s.io/docs/tasks/run/rayclusters/).
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJob, FinetuneJobStatus, Phase, Reason
from finetune_operator.decide.attempts import begin_attempt
from finetune_operator.decide.ending import attempt_ended, is_over, training_since
from finetune_operator.decide.plan import Plan
from finetune_operator.observed import Cluster, Observed
from finetune_operator.status import condition_is_true, set_condition, set_phase

QUEUED_SECONDS = 10.0
"""How often the queue's reason is read; the admission itself causes an event."""


def wait_for_quota(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan | None:
    """The plan for a job in a queue; None: no queue affects it at present."""
    cluster = observed.cluster
    if cluster is None or cluster.deleting:
        return None
    if cluster.suspended:
        return _wait(status, observed, cluster, now)
    return _admit(job, status, cluster, now) if status.phase is Phase.QUEUED else None


def _wait(status: FinetuneJobStatus, observed: Observed, cluster: Cluster, now: datetime) -> Plan:
    """The cluster is held back. Its run has ended once its head has, and the attempt is not counted."""
    submitted = condition_is_true(status, ConditionType.SUBMITTED)
    preempted = submitted or status.reason == Reason.PREEMPTED
    reason = Reason.PREEMPTED if preempted else Reason.QUEUED
    words = f": {observed.queue}" if observed.queue else ""
    message = f"cluster {cluster.name} waits for quota{words}"
    if submitted and not cluster.head_ready:
        status = status.model_copy(update=attempt_ended(status, Reason.PREEMPTED, now))
        for type_ in (ConditionType.SUBMITTED, ConditionType.PROGRESSING, ConditionType.CLUSTER_READY):
            status = set_condition(status, type_, False, Reason.PREEMPTED, "", now)
    status = set_condition(status, ConditionType.QUOTA_RESERVED, False, reason, message, now)
    return Plan(set_phase(status, Phase.QUEUED, reason, message), requeue_after=QUEUED_SECONDS)


def _admit(job: FinetuneJob, status: FinetuneJobStatus, cluster: Cluster, now: datetime) -> Plan:
    """The cluster is admitted: its start counts from now, and the next attempt follows a run that was ended."""
    status = set_condition(status, ConditionType.QUOTA_RESERVED, True, Reason.ADMITTED, "", now)
    if is_over(status):
        status = begin_attempt(job, status, cluster.name, now)
    elif status.ray is not None and training_since(status) is None:
        status = status.model_copy(update={"ray": status.ray.model_copy(update={"request_time": now})})
    message = f"the queue has let cluster {cluster.name} go"
    return Plan(set_phase(status, Phase.PROVISIONING, Reason.ADMITTED, message), requeue_after=0)
