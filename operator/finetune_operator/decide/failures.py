"""Why a run failed or lost a worker: by the trainer's report, the pods, or Ray's message."""

from __future__ import annotations

from finetune_operator.api.v1alpha1 import Reason
from finetune_operator.observed import Observed, Pod
from finetune_operator.pod_trouble import GONE


def explain_failure(observed: Observed) -> tuple[Reason, str]:
    """Reason and message for a Ray job that ended without success."""
    progress = observed.progress
    failure = progress.failure if progress is not None else None
    if failure is not None and failure.reason not in {"TrainingFailed", "OutOfMemory", "WorkerLost"}:
        return Reason(failure.reason), failure.message
    if (pod := _first_dead(observed)) is not None and pod.trouble is not None:
        return pod.trouble, f"{describe(pod)}; {failure.message}" if failure else describe(pod)
    if failure is not None:
        return Reason(failure.reason), failure.message
    if progress is not None and progress.state == "stopped":
        return Reason.TRAINING_FAILED, f"the run was asked to stop by somebody else than the operator, at step {progress.step}"
    if observed.ray_job.state == "STOPPED":
        return Reason.TRAINING_FAILED, "the Ray job was stopped by somebody else than the operator"
    return Reason.TRAINING_FAILED, observed.ray_job.message or "the trainer ended without a word"


def would_recur(observed: Observed, reason: Reason) -> bool:
    """Whether the trainer says of this failure that another attempt would not mend it."""
    failure = observed.progress.failure if observed.progress is not None else None
    return failure is not None and failure.reason == reason and failure.retryable is False


def explain_loss(observed: Observed) -> str:
    """What is known about the end of the head or of a worker, to append to a message; empty: nothing."""
    pod = _first_dead(observed)
    return f": {describe(pod)}" if pod is not None else ""


def describe(pod: Pod) -> str:
    """A pod and its trouble."""
    return f"pod {pod.name}: {pod.detail}"


def _first_dead(observed: Observed) -> Pod | None:
    """The first pod that failed; but lack of memory comes first, since it explains other failures."""
    dead = [pod for pod in (*observed.lost, *observed.pods) if pod.trouble in GONE]
    return min(dead, key=lambda pod: pod.trouble is not Reason.WORKER_OOM_KILLED, default=None)
