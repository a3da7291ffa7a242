"""Stages of a run: what the workers do before the first step and after the last one, as listed in progress.json."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.progress import PROGRESS_FILE, Progress, now, read_progress, write_progress

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run

IMPORTING = "importing torch and transformers"
"""The first stage of the workers."""


def enter_stage(run: Run, rank: int, text: str) -> None:
    """Add a stage, on rank 0 and before there is a tracker. IMPORTING removes the stages of workers that were lost.

    Raises:
        OutputInUse: another run has taken the output folder.
    """
    if rank != 0:
        return
    check_still_held(run)
    stages = () if text == IMPORTING else read_stages(run)
    path = run.logs / PROGRESS_FILE
    with suppress(OSError, ValueError):  # the tracker reports the error
        last = read_progress(path) or Progress(attempt=run.attempt, last_report_time=now())
        write_progress(path, last.model_copy(update={"stages": (*stages, text), "last_report_time": now()}))


def read_stages(run: Run) -> tuple[str, ...]:
    """The stages so far; none when the file is missing or broken."""
    with suppress(OSError, ValueError):
        last = read_progress(run.logs / PROGRESS_FILE)
        return () if last is None else last.stages
    return ()
