"""Translate errors of Python, torch and Ray whose cause is known into the trainer's own errors."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from finetune_trainer.advice import lacking_memory, to_save_memory
from finetune_trainer.errors import (
    NO_SPACE,
    OutOfMemory,
    OutputVolumeFull,
    TrainerError,
    WorkerLost,
    WorkerOOMKilled,
    output_error,
)

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import TrainerConfig


def explain(error: BaseException, run: Run) -> TrainerError | None:
    """Translate an error of Python, torch or Ray whose cause is known; None: the cause is unknown."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, OSError) and error.errno in NO_SPACE:
        return output_error(run.output_dir, error)
    text = str(error)
    if type(error).__name__ == "WorkerHealthCheckFailedError":
        return _explain_loss(text, run.config)
    memory = lacking_memory(error)
    if memory is not None:
        said = text.strip().splitlines()[0] if text.strip() else type(error).__name__
        notes = "".join(f"; {note}" for note in getattr(error, "__notes__", ()))
        return OutOfMemory(f"the memory of the {memory} is exhausted ({said}){notes}; {to_save_memory(run.config, memory)}")
    # safetensors writes files in Rust, and its errors have no errno.
    if "No space left on device" in text or "os error 28" in text:
        return OutputVolumeFull(f"{run.output_dir}: no space left on the output volume")
    return None


def _explain_loss(text: str, config: TrainerConfig) -> WorkerLost | WorkerOOMKilled:
    """Put Ray Train's report of a lost worker into one or two sentences: its description, then the cause from Ray's core."""
    description, _, cause = text.partition("\n)\n")
    host = re.search(r"hostname='([^']+)'", description)
    worker = f"the worker on {host[1]}" if host else "a worker"
    memory = re.search(r"Memory on the node \([^)]*\) was (.+?limit)", cause)
    if memory:
        return WorkerOOMKilled(f"{worker} was ended for lack of memory ({memory[1]}); {to_save_memory(config, 'host')}")
    return WorkerLost(f"{worker} was lost: {' '.join(cause.split())[:1000]}")
