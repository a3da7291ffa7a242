"""Why a run failed or lost a worker: by the trainer's report, the pods, or Ray's message."""

from __future__ import annotations

from finetune_operator.api.reasons import Problem, Reason
from finetune_operator.observed import Observed, Pod
from finetune_operator.pod_problems import GONE


def explain_failure(observed: Observed) -> Problem:
    """Reason and message for a Ray job that ended without success."""
    progress = observed.progress
    failure = progress.failure if progress is not None else None
    if failure is not None and failure.reason not in {"TrainingFailed", "OutOfMemory", "WorkerLost"}:
        return Problem(Reason(failure.reason), failure.message)
    if (dead := _first_dead(observed)) is not None:
        return Problem(dead[1].reason, f"{describe(*dead)}; {failure.message}" if failure else describe(*dead))
    if failure is not None:
        return Problem(Reason(failure.reason), failure.message)
    if progress is not None and progress.state == "stopped":
        message = f"the run was asked to stop by somebody else than the operator, at step {progress.step}"
        return Problem(Reason.TRAINING_FAILED, message)
    if observed.ray_job.state == "STOPPED":
        return Problem(Reason.TRAINING_FAILED, "the Ray job was stopped by somebody else than the operator")
    return Problem(Reason.TRAINING_FAILED, observed.ray_job.message or "the trainer ended without a message")


def would_recur(observed: Observed, reason: Reason) -> bool:
    """Whether the trainer says of this failure that another attempt would not mend it."""
    failure = observed.progress.failure if observed.progress is not None else None
    return failure is not None and failure.reason == reason and failure.retryable is False


def explain_loss(observed: Observed) -> str:
    """What is known about the end of the head or of a worker, to append to a message; empty: nothing."""
    dead = _first_dead(observed)
    return f": {describe(*dead)}" if dead is not None else ""


def describe(pod: Pod, problem: Problem) -> str:
    """A pod and its problem."""
    return f"pod {pod.name}: {problem.message}"


def _first_dead(observed: Observed) -> tuple[Pod, Problem] | None:
    """The first pod that failed; but lack of memory comes first, since it explains other failures."""
    pods = (*observed.lost, *observed.pods)
    dead = [(pod, pod.problem) for pod in pods if pod.problem is not None and pod.problem.reason in GONE]
    return min(dead, key=lambda item: item[1].reason is not Reason.WORKER_OOM_KILLED, default=None)
