"""`dataset.uri` and `model.uri`: a pod fetches them before there is an attempt, so that no GPU waits for a download.

A try is stored before its pod is made, as an attempt is before its cluster. A pod that is lost is made again under the same
name: it goes on with what is on the claim. A pod that has failed is deleted before the next one, so there is one at a time.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import (
    ConditionType,
    FetchedStatus,
    FetchStatus,
    FinetuneJob,
    FinetuneJobStatus,
    Phase,
    Reason,
)
from finetune_operator.decide.attempts import pause_seconds
from finetune_operator.decide.ending import CLEAN_UP_SECONDS, fail
from finetune_operator.decide.failures import describe
from finetune_operator.decide.plan import CreateFetchPod, DeletePod, Plan
from finetune_operator.desired.defaults import retry_policy
from finetune_operator.desired.fetch import fetch_pod_name
from finetune_operator.desired.sources import is_complete, sources
from finetune_operator.observed import FetchPod, Observed, Pod
from finetune_operator.status import set_condition, set_phase
from finetune_trainer.fetch.report import Fetched, FetchReport

LOOK_SECONDS = 5.0
"""How often the progress of a fetch is read; changes of its pod cause events."""

NAME_TAKEN_SECONDS = 5.0
"""How often to look again after the pod could not be made."""

_MENDED_BY_A_RETRY = frozenset({Reason.FETCH_FAILED, Reason.EVICTED, Reason.POD_FAILED})


def fetch_first(job: FinetuneJob, status: FinetuneJobStatus, observed: Observed, now: datetime) -> Plan | None:
    """The plan of a job whose files are not all there; None: nothing is missing, and the attempt may begin."""
    if is_complete(job):
        return _without_pod(status, observed)
    fetch = status.fetch
    if fetch is None:
        status = status.model_copy(update={"defaults": status.defaults or observed.defaults})
        return _begin_try(job, status, 1, now)
    if fetch.failure_time is not None:
        return _pause(job, status, fetch, observed, now)
    return _follow(job, status, fetch, observed, now)


def stop_fetch(status: FinetuneJobStatus, observed: Observed) -> Plan | None:
    """Before a suspension: the plan that removes the pod that fetches; None: there is none."""
    pod = observed.fetch
    if pod is None:
        return None
    message = f"pod {pod.name} is being deleted; what it has fetched stays on the claim"
    status = set_phase(status, Phase.SUSPENDING, Reason.SUSPENDED_BY_USER, message)
    return Plan(status, _deletion(pod), requeue_after=CLEAN_UP_SECONDS)


def _without_pod(status: FinetuneJobStatus, observed: Observed) -> Plan | None:
    """Remove the pod whose result is stored; one that somebody else's finalizer holds does not hold the job up."""
    pod = observed.fetch
    if pod is None or pod.deleting:
        return None
    return Plan(status, _deletion(pod), requeue_after=CLEAN_UP_SECONDS)


def _begin_try(job: FinetuneJob, status: FinetuneJobStatus, attempt: int, now: datetime) -> Plan:
    """Store the try before its pod is made."""
    old = status.fetch
    fetch = FetchStatus(pod=fetch_pod_name(job, attempt), attempt=attempt, request_time=now)
    if old is not None:
        fetch = fetch.model_copy(update={"dataset": old.dataset, "model": old.model})
    status = status.model_copy(update={"fetch": fetch})
    status = set_condition(status, ConditionType.VALIDATED, True, Reason.ACCEPTED, "", now)
    return Plan(_fetching(status, Reason.FETCHING, f"pod {fetch.pod} will be made", now), requeue_after=0)


def _pause(job: FinetuneJob, status: FinetuneJobStatus, fetch: FetchStatus, observed: Observed, now: datetime) -> Plan:
    """Until the pause before the next try is over, and the pod of the last one is gone."""
    pod = observed.fetch
    due = (fetch.failure_time or now) + timedelta(seconds=pause_seconds(retry_policy(job), fetch.attempt))
    if now < due:
        return Plan(status, requeue_after=(due - now).total_seconds())
    if pod is not None:
        return Plan(status, _deletion(pod), requeue_after=CLEAN_UP_SECONDS)
    return _begin_try(job, status, fetch.attempt + 1, now)


def _follow(job: FinetuneJob, status: FinetuneJobStatus, fetch: FetchStatus, observed: Observed, now: datetime) -> Plan:
    """From the pod's creation to its end."""
    pod = observed.fetch
    if observed.start_problem is not None:
        problem = observed.start_problem
        return Plan(_fetching(status, problem.reason, problem.message, now), requeue_after=NAME_TAKEN_SECONDS)
    if pod is None:
        return Plan(status, (CreateFetchPod(fetch.attempt),), requeue_after=LOOK_SECONDS)
    if pod.report is not None and pod.finished:
        return _ended(job, status, fetch, pod.report, now)
    if pod.finished:
        problem = pod.problem or Problem(Reason.POD_FAILED, "it has ended without a report")
        words = describe(Pod(pod.name, is_head=False, ready=False), problem)
        return _failed(job, status, fetch, problem.reason, words, now, again=problem.reason in _MENDED_BY_A_RETRY)
    status = status.model_copy(update={"fetch": _with_progress(fetch, observed)})
    what = " and ".join(source.uri.partition("?")[0] for source in sources(job))
    reason, message = Reason.FETCHING, f"pod {pod.name} fetches {what}"
    if pod.problem is not None:
        reason, message = pod.problem.reason, f"pod {pod.name}: {pod.problem.message}"
    return Plan(_fetching(status, reason, message, now), requeue_after=LOOK_SECONDS)


def _ended(job: FinetuneJob, status: FinetuneJobStatus, fetch: FetchStatus, report: FetchReport, now: datetime) -> Plan:
    """The pod has reported its end; what it has fetched is stored, whatever has failed."""
    found = {"dataset": _stored(report.dataset) or fetch.dataset, "model": _stored(report.model) or fetch.model}
    fetch = fetch.model_copy(update=found)
    status = status.model_copy(update={"fetch": fetch})
    if report.failure is not None:
        failure = report.failure
        return _failed(job, status, fetch, Reason(failure.reason), failure.message, now, again=failure.retryable)
    after = job.model_copy(update={"status": status})
    if not is_complete(after):
        return _failed(job, status, fetch, Reason.FETCH_FAILED, "the pod's report lacks what it was to fetch", now, again=False)
    size = sum(part.size_bytes for part in found.values() if part is not None)
    done = fetch.model_copy(update={"bytes": size, "total_bytes": size, "display": "100%"})
    status = status.model_copy(update={"fetch": done})
    message = f"{size:,} bytes are there"
    status = set_condition(status, ConditionType.FETCHED, True, Reason.FETCHED, message, now)
    return Plan(set_phase(status, Phase.PENDING, Reason.FETCHED, message), requeue_after=0)


def _failed(
    job: FinetuneJob, status: FinetuneJobStatus, fetch: FetchStatus, reason: Reason, message: str, now: datetime, *, again: bool
) -> Plan:
    """Try again, or end the job."""
    policy = retry_policy(job)
    if not again or fetch.attempt >= policy.max_attempts:
        return fail(set_condition(status, ConditionType.FETCHED, False, reason, message, now), reason, message, now)
    status = status.model_copy(update={"fetch": fetch.model_copy(update={"failure_time": now})})
    pause = pause_seconds(policy, fetch.attempt)
    message = f"try {fetch.attempt + 1} of {policy.max_attempts} begins in {pause} s; {reason}: {message}"
    return Plan(_fetching(status, Reason.FETCH_RETRYING, message, now), requeue_after=0)


def _fetching(status: FinetuneJobStatus, reason: Reason, message: str, now: datetime) -> FinetuneJobStatus:
    status = set_condition(status, ConditionType.FETCHED, False, reason, message, now)
    return set_phase(status, Phase.PENDING, reason, message)


def _with_progress(fetch: FetchStatus, observed: Observed) -> FetchStatus:
    """The pod's own word, which decides nothing."""
    progress = observed.fetch_progress
    if progress is None:
        return fetch
    total = progress.total_bytes
    display = f"{min(progress.bytes * 100 // total, 100)}%" if total else None
    return fetch.model_copy(update={"bytes": progress.bytes, "total_bytes": total, "display": display})


def _stored(found: Fetched | None) -> FetchedStatus | None:
    if found is None:
        return None
    return FetchedStatus(version=found.version, origin=found.origin, files=found.files, size_bytes=found.size_bytes)


def _deletion(pod: FetchPod) -> tuple[DeletePod, ...]:
    return () if pod.deleting else (DeletePod(pod.name, pod.uid),)
