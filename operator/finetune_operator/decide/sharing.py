"""Jobs share nodes without a queue: a job whose pods find no node gives them back in favour of an older job.

Without this, jobs that start together block each other for ever: the heads of some hold the CPUs that the workers of
others need, and all wait. The oldest job that waits keeps its pods, the others give theirs back and try again: one at a
time as soon as no older job waits, or after a pause that doubles. So each job that fits alone has its turn. A queue,
such as Kueue's, does this better: docs/queues.md.
"""

from __future__ import annotations

from datetime import datetime

from finetune_operator.api.v1alpha1 import FinetuneJob, FinetuneJobStatus, Phase, Reason
from finetune_operator.decide.ending import begin_again, gave_back
from finetune_operator.decide.plan import Plan
from finetune_operator.desired.naming import scheduling_labels
from finetune_operator.observed import Observed

GIVE_BACK_SECONDS = 30.0
"""How long the pods of a job may wait for nodes while those of an older job wait, too."""

OLDEST_SECONDS = 300.0
"""The same for the oldest job. One that fits nowhere would block the others with the part of its pods that has nodes."""

PAUSE_SECONDS = 30.0
"""First pause after the pods were given back; it doubles each time, up to 16 times as long."""

LOOK_SECONDS = 10.0
"""How often a job in its pause looks whether no older one waits any more. It reads the operator's own memory only."""


def give_back(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan | None:
    """The plan for a job whose pods have waited for nodes long enough; None: it keeps them."""
    line, trouble = observed.line, observed.trouble
    if status.phase is not Phase.PROVISIONING or status.ray is None or line is None or not line.competing:
        return None
    if trouble is None or trouble.trouble is not Reason.UNSCHEDULABLE or scheduling_labels(job.metadata.labels):
        return None
    waited = (now - (status.ray.request_time or now)).total_seconds()
    if waited < (GIVE_BACK_SECONDS if line.older_competing else OLDEST_SECONDS):
        return None
    favoured = "an older FinetuneJob" if line.older_competing else "other FinetuneJobs"
    message = f"no node accepts all pods, so they are given back in favour of {favoured} that waits too; {trouble.detail}"
    return begin_again(status, Reason.UNSCHEDULABLE, message, now, why=Reason.UNSCHEDULABLE)


def pause_seconds(status: FinetuneJobStatus, observed: Observed) -> float:
    """Seconds from giving back to the next attempt: none once no older job waits, unless this one held its pods for long."""
    begun, ended = status.ray and status.ray.request_time, status.attempt_history[-1].end_time
    held = (ended - begun).total_seconds() if begun else 0.0
    if observed.line is not None and not observed.line.older and held < OLDEST_SECONDS:
        return 0.0
    return PAUSE_SECONDS * 2.0 ** (max(gave_back(status), 1) - 1)
