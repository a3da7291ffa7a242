"""Status arithmetic: conditions by the rules of Kubernetes, and the one merge patch that a reconcile writes."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_operator.api.reasons import NEEDS_ATTENTION
from finetune_operator.api.v1alpha1 import (
    CheckpointStatus,
    Condition,
    ConditionType,
    FinetuneJobStatus,
    OutputStatus,
    Phase,
    ProgressStatus,
    Reason,
    ResultStatus,
    dump,
)
from finetune_operator.constants import PROGRESS_HEARTBEAT_SECONDS, PROGRESS_WRITE_SECONDS
from finetune_operator.text import clip
from finetune_trainer.tracking.progress import Checkpoint, Progress, Result


def set_phase(status: FinetuneJobStatus, phase: Phase, reason: Reason, message: str) -> FinetuneJobStatus:
    """A copy in a phase, with its reason and its message held to their limit."""
    return status.model_copy(update={"phase": phase, "reason": str(reason), "message": clip(message)})


def set_condition(
    status: FinetuneJobStatus, type_: ConditionType, value: bool | None, reason: Reason, message: str, now: datetime
) -> FinetuneJobStatus:
    """A copy with one condition set; ``lastTransitionTime`` moves only when its status does. None means Unknown."""
    text = "Unknown" if value is None else str(value)
    old = find_condition(status, type_)
    changed = old is None or old.status != text
    new = Condition(
        type=type_,
        status=text,
        reason=reason,
        message=clip(message),
        last_transition_time=now if changed or old is None else old.last_transition_time,
        observed_generation=status.observed_generation,
    )
    others = tuple(condition for condition in status.conditions if condition.type != type_)
    return status.model_copy(update={"conditions": (*others, new)})


def find_condition(status: FinetuneJobStatus, type_: ConditionType) -> Condition | None:
    """A condition, or None while it is not there."""
    return next((condition for condition in status.conditions if condition.type == type_), None)


def condition_is_true(status: FinetuneJobStatus, type_: ConditionType) -> bool:
    """Whether a condition is there and True."""
    condition = find_condition(status, type_)
    return condition is not None and condition.status == "True"


def progress_status(progress: Progress, before: ProgressStatus | None, now: datetime) -> ProgressStatus:
    """The trainer's report as the resource shows it, and when its step was first seen: the trainer's clock is not trusted."""
    world = progress.world
    seen = before is not None and (before.step, before.attempt, before.restarts or 0) == (
        progress.step, progress.attempt, progress.restarts,
    )  # fmt: skip
    return ProgressStatus(
        display=f"{progress.percent}%",
        percent=progress.percent,
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=round(progress.epoch, 3),
        eta_seconds=progress.eta_seconds,
        loss=_significant(progress.loss),
        eval_loss=_significant(progress.eval_loss),
        learning_rate=progress.learning_rate,
        tokens_per_second=_significant(progress.tokens_per_second),
        attempt=progress.attempt,
        restarts=progress.restarts or None,
        last_report_time=progress.last_report_time,
        step_time=before.step_time if seen and before is not None and before.step_time is not None else now,
        hosts=world.hosts[:256] if world else (),
        backend=world.backend if world else None,
    )


def checkpoint_status(checkpoint: Checkpoint) -> CheckpointStatus:
    """The trainer's newest checkpoint as the resource shows it."""
    return CheckpointStatus(step=checkpoint.step, path=checkpoint.path, time=checkpoint.time)


def result_status(result: Result) -> ResultStatus:
    """The trainer's result as the resource shows it."""
    return ResultStatus(
        train_loss=_significant(result.train_loss),
        first_loss=_significant(result.first_loss),
        eval_loss=_significant(result.eval_loss),
        perplexity=_significant(result.perplexity),
    )


def _significant(value: float | None) -> float | None:
    """Round to four significant digits, which keeps a column narrow."""
    return None if value is None else float(f"{value:.4g}")


def output_status(claim: str, path: str, progress: Progress | None) -> OutputStatus:
    """The place of the result; with its summary once the trainer has written the manifest."""
    output = progress.output if progress else None
    if output is None:
        return OutputStatus(persistent_volume_claim=claim, path=path)
    return OutputStatus(
        persistent_volume_claim=claim,
        path=path,
        format=output.format,
        size_bytes=output.size_bytes,
        manifestSHA256=output.manifest_sha256,
    )


def throttle(old: FinetuneJobStatus, new: FinetuneJobStatus, since_write: float | None) -> FinetuneJobStatus:
    """The next status, or the stored one where a running job has no more to tell than its progress, and was written shortly
    before. The trainer decides what it reports, and how often; so only our own writes are counted: `since_write` is the
    seconds since this process last wrote the job's status, None if it has not.
    """
    if since_write is None or not _only_progress(old, new):
        return new
    if new.phase is Phase.PENDING and _without_bytes(old) == _without_bytes(new):
        return old if since_write < PROGRESS_WRITE_SECONDS else new
    if new.phase is not Phase.RUNNING:
        return new
    quiet = {"progress": None, "checkpoint": None, "conditions": ()}
    same = old.model_copy(update=quiet) == new.model_copy(update=quiet) and _percent(old) == _percent(new)
    return old if since_write < (PROGRESS_HEARTBEAT_SECONDS if same else PROGRESS_WRITE_SECONDS) else new


def _without_bytes(status: FinetuneJobStatus) -> FinetuneJobStatus:
    """A status without the progress of its fetch."""
    if status.fetch is None:
        return status
    quiet = {"bytes": None, "total_bytes": None, "display": None}
    return status.model_copy(update={"fetch": status.fetch.model_copy(update=quiet)})


def _only_progress(old: FinetuneJobStatus, new: FinetuneJobStatus) -> bool:
    """Whether nothing has changed that is to be seen at once."""
    at_once = ("phase", "observed_generation", "attempt", "attempt_history", "ray")
    problem = {old.reason, new.reason} & NEEDS_ATTENTION and old.reason != new.reason
    return not problem and all(getattr(old, name) == getattr(new, name) for name in at_once)


def _percent(status: FinetuneJobStatus) -> int | None:
    return status.progress.percent if status.progress else None


API_PROBLEM = "; a call of the Kubernetes API fails: "
"""What comes between a message and the call that fails."""


def with_api_problem(status: FinetuneJobStatus, problem: str) -> FinetuneJobStatus:
    """A copy whose message says that a call of the Kubernetes API fails for the job."""
    return status.model_copy(update={"message": clip((status.message or "") + API_PROBLEM + problem)})


def api_problem(status: FinetuneJobStatus) -> str:
    """What the message says of a call that fails; empty if it says nothing."""
    return (status.message or "").partition(API_PROBLEM)[2]


def without_api_problem(status: FinetuneJobStatus) -> FinetuneJobStatus:
    """A copy as it was before."""
    message, found, _ = (status.message or "").partition(API_PROBLEM)
    return status.model_copy(update={"message": message}) if found else status


def status_patch(stored: Mapping[str, Any], new: FinetuneJobStatus) -> dict[str, Any] | None:
    """The merge patch from the status as the API server has it, or None when they are equal."""
    return _merge_patch(stored, dump(new)) or None


def _merge_patch(old: Mapping[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if nested := _merge_patch(before, value):
                patch[key] = nested
        elif value != before:
            patch[key] = value
    return patch
