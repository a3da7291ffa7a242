"""Why a run failed: from the trainer's own word, the pods, or what Ray says, in this order of trust."""

from __future__ import annotations

from finetune_operator.api.v1alpha1 import Reason
from finetune_operator.observed import Observed


def explain_failure(observed: Observed) -> tuple[Reason, str]:
    """Reason and message for a Ray job that ended without success."""
    progress = observed.progress
    for pod in observed.pods:
        if pod.trouble is Reason.WORKER_OOM_KILLED:
            return pod.trouble, f"pod {pod.name}: {pod.detail}"
    if progress is not None and progress.failure is not None:
        return Reason(progress.failure.reason), progress.failure.message
    if progress is not None and progress.state == "stopped":
        return Reason.TRAINING_FAILED, f"the run was asked to stop by somebody else than the operator, at step {progress.step}"
    if observed.ray_job.state == "STOPPED":
        return Reason.TRAINING_FAILED, "the Ray job was stopped by somebody else than the operator"
    return Reason.TRAINING_FAILED, observed.ray_job.message or "the trainer ended without a word"
