"""Status arithmetic: conditions by the rules of Kubernetes, and the one merge patch that a reconcile writes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

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


def progress_status(progress: Progress) -> ProgressStatus:
    """The trainer's report as the resource shows it."""
    world = progress.world
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


def throttle_progress(old: FinetuneJobStatus, new: FinetuneJobStatus) -> FinetuneJobStatus:
    """Keep the stored progress if nothing else has changed and the last write is recent."""
    if old.progress is None or new.progress is None:
        return new
    if old.model_copy(update={"progress": None}) != new.model_copy(update={"progress": None}):
        return new
    age = new.progress.last_report_time - old.progress.last_report_time
    due = timedelta(
        seconds=PROGRESS_WRITE_SECONDS if new.progress.percent != old.progress.percent else PROGRESS_HEARTBEAT_SECONDS
    )
    return new if age >= due else new.model_copy(update={"progress": old.progress})


def status_patch(old: FinetuneJobStatus, new: FinetuneJobStatus) -> dict[str, Any] | None:
    """The merge patch from one status to the other, or None when they are equal."""
    return _merge_patch(dump(old), dump(new)) or None


def _merge_patch(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    patch: dict[str, Any] = {key: None for key in old if key not in new}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            if nested := _merge_patch(before, value):
                patch[key] = nested
        elif value != before:
            patch[key] = value
    return patch
