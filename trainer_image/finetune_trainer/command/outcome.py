"""Record how a run ended: in progress.json, and in the report of a run that ended early."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from finetune_trainer.config.run import REPORT_FILE
from finetune_trainer.errors import TrainerError
from finetune_trainer.output import manifest
from finetune_trainer.redaction import redact
from finetune_trainer.tracking import console
from finetune_trainer.tracking.progress import (
    PROGRESS_FILE,
    Checkpoint,
    Failure,
    Output,
    Progress,
    now,
    read_progress,
    write_progress,
)

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.run import Run


def write_report(run: Run, progress: Progress) -> None:
    """Write the report of a run that ended early. It only helps the user: the failure is reported already."""
    if manifest.is_finished(run.output_dir):
        return  # the report is part of a result
    from finetune_trainer.output import report

    try:
        with suppress(OSError):  # for example, the volume is full
            report.write_interrupted(run, progress)
    except Exception as error:  # noqa: BLE001 - it must not hide the failure that the report is about
        console.complain(f"warning: no {REPORT_FILE} was written: {error}")


def write_stopped(run: Run) -> None:
    """Record that the run was stopped before its first step."""
    changes = {"state": "stopped", "eta_seconds": None, "last_report_time": now()}
    path = run.logs / PROGRESS_FILE
    with suppress(OSError):
        last = last_progress(path) or Progress(attempt=run.attempt, last_report_time=now())
        write_progress(path, last.model_copy(update=changes))


def say_stopped(reached: Checkpoint | None) -> None:
    """Tell the user how to resume a stopped run."""
    if reached is None:
        console.say("stopped before the first step")
    else:
        console.say(f"stopped at step {reached.step}; the same command resumes from there")


def write_finished(run: Run, output: Output) -> None:
    """Record that the result of an earlier attempt is complete."""
    path = run.logs / PROGRESS_FILE
    last = last_progress(path) or Progress(last_report_time=now())
    changes = {"attempt": run.attempt, "state": "finished", "percent": 100, "output": output, "failure": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_progress(path, last.model_copy(update={**changes, "last_report_time": now()}))


def record_failure(logs: Path, attempt: int, error: TrainerError) -> Progress:
    """Add the failure to what progress.json says about the run; return the new content."""
    path = logs / PROGRESS_FILE
    last = last_progress(path)
    if last is None or last.attempt != attempt:
        last = Progress(attempt=attempt, last_report_time=now())
    failure = Failure(reason=error.reason, message=redact(str(error)), retryable=error.retryable)
    changes = {"state": "failed", "failure": failure, "eta_seconds": None, "last_report_time": now()}
    failed = last.model_copy(update=changes)
    with suppress(OSError):
        logs.mkdir(parents=True, exist_ok=True)
        write_progress(path, failed)
    return failed


def last_progress(path: Path) -> Progress | None:
    """The progress file as it is; None: there is none, or it cannot be read."""
    with suppress(OSError, ValueError):
        return read_progress(path)
    return None
