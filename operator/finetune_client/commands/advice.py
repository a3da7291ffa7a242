"""What to do next about a job, by its reason and phase."""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_client.job import Job
from finetune_operator.api.phases import Phase
from finetune_operator.api.reasons import ENDED, WAITING, Explanation, Reason

UNSEEN_SECONDS = 30
"""A job without a status is older than this only when no operator watches its namespace."""


def explanation(job: Job) -> Explanation | None:
    """What is known of a job's reason."""
    try:
        reason = Reason(job.reason)
    except ValueError:
        return None
    first, second = (ENDED, WAITING) if job.has_ended else (WAITING, ENDED)
    return first.get(reason) or second.get(reason)


def is_unseen(job: Job) -> bool:
    """Whether no operator has taken the job up, although it has had the time."""
    created = job.created
    return (
        not job.read("status", "phase") and created is not None and (datetime.now(UTC) - created).total_seconds() > UNSEEN_SECONDS
    )


def remedy(job: Job) -> str:
    """What can be done about the reason, in a sentence; empty: nothing has to be."""
    if is_unseen(job):
        return "No operator has taken the job up: `finetune doctor` shows whether one runs and watches this namespace."
    found = explanation(job)
    return "" if found is None or job.phase is Phase.SUCCEEDED else found.remedy


def commands(job: Job) -> list[tuple[str, str]]:
    """Commands that make sense now, and what each is for."""
    name = job.name
    log = (f"finetune logs {name}", "the output of its driver")
    cancel = (f"finetune cancel {name}", "give up")
    follow = (f"finetune watch {name}", "follow it")
    found = [follow, cancel]
    match job.phase:
        case Phase.SUCCEEDED:
            found = [(f"finetune download {name} {name}", "copy the result here, held against its checksums")]
        case Phase.FAILED | Phase.CANCELLED:
            found = [log] if job.read("status", "attempt") else []
            found += [(f"finetune retry {name}", "a new job, from the newest checkpoint")]
        case Phase.SUSPENDED | Phase.SUSPENDING:
            found = [(f"finetune resume {name}", "resume from the checkpoint"), cancel]
        case Phase.RUNNING if job.reason == Reason.STALLED:
            restart = (f"finetune suspend {name}; finetune resume {name}", "begin again on new pods, from the checkpoint")
            found = [log, restart, cancel]
        case Phase.RUNNING:
            found = [follow, (f"finetune logs -f {name}", "the output of its driver")]
        case Phase.QUEUED:
            found = [(f"kubectl get workloads -n {job.namespace}", "what Kueue has queued"), follow, cancel]
        case _:
            pass
    return found
