"""The file `progress.json`, which reports the progress of a run: its model, its writer and its reader.

Rank 0 writes the file below the output folder; in a cluster the driver copies it to the head's Ray log folder, where
the operator reads it through the Ray dashboard. The keys are those of a FinetuneJob's ``status``. The operator
shares these models, so this module must not import anything heavy.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_trainer.errors import FailureReason
from finetune_trainer.files import write_atomically

PROGRESS_FILE = "progress.json"
"""Name of the file below ``<output_dir>/logs``."""

RAY_LOG_FILE = "finetune-progress.json"
"""Name of the copy in the Ray session's log folder on the head node, which the dashboard serves."""


Count = Annotated[int, Field(ge=0, lt=2**53)]
"""A count that every JSON reader represents exactly."""

Number = Annotated[float, Field(allow_inf_nan=False)]
"""JSON has neither NaN nor infinity."""

Word = Annotated[str, Field(max_length=512)]


class Report(BaseModel):
    """A frozen part of the progress file, with camelCase keys.

    Everything is bounded: the user chooses the image that writes it, and the operator puts it into the status.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")


class World(Report):
    """The process group that trains."""

    size: Count
    """Number of ranks."""
    hosts: Annotated[tuple[Word, ...], Field(max_length=1024)] = ()
    """Host name of each rank, by rank: pod names in a cluster."""
    devices: Annotated[tuple[Word, ...], Field(max_length=1024)] = ()
    """torch device of each rank, by rank."""
    backend: Word = ""
    """torch.distributed backend: gloo, xccl or nccl; empty when there is no process group."""
    strategy: Literal["DDP", "FSDP"] = "DDP"
    dtype: Word = "float32"
    """Compute type."""


class Output(Report):
    """Summary of the completion manifest: the result is complete and checked."""

    format: Literal["peft-adapter", "full-model"]
    path: Annotated[str, Field(max_length=4096)]
    """The output folder as the trainer sees it."""
    files: Count
    size_bytes: Count
    """Sum over all files of the manifest."""
    manifest_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """SHA-256 of manifest.json itself, in hex."""


class Result(Report):
    """The losses of the trained model."""

    train_loss: Number | None = None
    """Mean loss per supervised token over the last logging window."""
    first_loss: Number | None = None
    """Loss of the first step."""
    eval_loss: Number | None = None
    """Mean loss per supervised token over the evaluation rows."""
    perplexity: Number | None = None
    """exp(evalLoss)."""


class Checkpoint(Report):
    """The newest complete checkpoint."""

    step: Count
    """Optimizer steps that it holds."""
    path: Annotated[str, Field(max_length=4096)]
    """Its folder as the trainer sees it."""
    time: AwareDatetime
    """When it became complete."""


class Failure(Report):
    """Why the run failed: a reason, and a message for the user."""

    reason: FailureReason
    message: str
    retryable: bool | None = None
    """Whether another attempt may succeed; None: unknown, the trainer is of a release that did not say."""


class Progress(Report):
    """The whole file. Times are RFC 3339 in UTC, durations are in seconds."""

    attempt: Count = 1
    """The attempt that wrote the file."""
    state: Literal["starting", "training", "exporting", "finished", "stopped", "failed"] = "starting"
    step: Count = 0
    """Optimizer steps done."""
    total_steps: Count = 0
    epoch: Number = 0.0
    percent: Annotated[int, Field(ge=0, le=100)] = 0
    """0 to 100, rounded down: 100 only when all steps are done."""
    eta_seconds: Count | None = None
    loss: Number | None = None
    eval_loss: Number | None = None
    grad_norm: Number | None = None
    """Norm of the gradients of the last step, before clipping."""
    learning_rate: Number | None = None
    tokens_per_second: Number | None = None
    """Non-padding input tokens of all ranks per second of steady steps."""
    last_report_time: AwareDatetime
    stages: Annotated[tuple[Word, ...], Field(max_length=32)] = ()
    """What the workers do before the first step and after the last one, in order."""
    restarts: Count = 0
    """How often Ray Train has restarted the workers in this attempt, after one was lost."""
    checkpoint: Checkpoint | None = None
    world: World | None = None
    output: Output | None = None
    result: Result | None = None
    failure: Failure | None = None


def write_progress(path: Path, progress: Progress) -> None:
    """Write the progress file on one line, since the Ray dashboard serves files by lines."""
    text = progress.model_dump_json(by_alias=True, exclude_none=True)
    write_atomically(path, text.encode() + b"\n")


def read_progress(path: Path) -> Progress | None:
    """Read the file; None when it does not exist yet.

    Raises:
        pydantic.ValidationError: the file is not a progress file.
    """
    try:
        return Progress.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None


def now() -> datetime:
    """The current time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
