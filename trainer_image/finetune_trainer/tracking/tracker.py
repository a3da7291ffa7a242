"""Track the progress of a run on rank 0: in progress.json for the operator and the console, and in metrics.jsonl."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_trainer.errors import output_error
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.measurements import StepDone
from finetune_trainer.tracking.metrics import append_record, forget_after
from finetune_trainer.tracking.progress import PROGRESS_FILE, Checkpoint, Output, Progress, Result, World, now, write_progress
from finetune_trainer.tracking.stages import read_stages
from finetune_trainer.tracking.tensorboard import TensorBoardWriter

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.config.run import Run
    from finetune_trainer.tracking.measurements import Evaluation

Made = TypeVar("Made")

WRITE_INTERVAL = 0.5
"""Seconds between two writes of progress.json while nothing but the step number changes."""


@dataclass
class Tracker:
    """Tracks the progress of a run. Only the tracker of rank 0 writes files."""

    run: Run
    writes: bool
    clock: Callable[[], float] = time.monotonic
    """A monotonic clock, in seconds."""
    progress: Progress = field(init=False)
    _written: float = 0.0
    _since: float = 0.0
    """When the measurement of speed began, on the monotonic clock."""
    _tokens: int = 0
    _steps: int = 0
    _began: float = 0.0
    _evaluated: int = 0
    """Step of the last recorded evaluation."""
    _tensorboard: TensorBoardWriter | None = None

    def __post_init__(self) -> None:
        self.progress = Progress(attempt=self.run.attempt, last_report_time=now())

    @property
    def seconds(self) -> float:
        """How long this attempt has trained and evaluated."""
        return self.clock() - self._began

    def start(self, world: World, total_steps: int, checkpoint: Checkpoint | None = None, restarts: int = 0) -> None:
        """Record that training starts, or resumes from a checkpoint: records of later steps are removed."""
        step = 0 if checkpoint is None else checkpoint.step
        percent = 100 * step // total_steps
        self._update(state="training", world=world, total_steps=total_steps, restarts=restarts)
        self._update(step=step, percent=percent, checkpoint=checkpoint)
        self._update(stages=(*read_stages(self.run), "training") if self.writes else ())
        self._forget_after(step)
        if self.writes and self.run.config.general.report_to == "tensorboard":
            self._tensorboard = self._guard(lambda: TensorBoardWriter.begin(self.run.logs, step))
        if checkpoint is not None or restarts:
            self._append({"event": "resumed", "step": step, "attempt": self.run.attempt, "restarts": restarts})
        self._write()
        self._since = self._began = self.clock()

    def step(self, done: StepDone, *, logs: bool) -> None:
        """Record an optimizer step.

        Args:
            done: its measurements.
            logs: whether the step goes into metrics.jsonl: it is a logging step, or the first or last one.
        """
        speed, pace = self._measure(done.tokens)
        self._update(
            step=done.step,
            epoch=round(done.epoch, 4),
            percent=100 * done.step // self.progress.total_steps,
            loss=done.loss,
            grad_norm=done.grad_norm,
            learning_rate=done.learning_rate,
            tokens_per_second=round(speed, 1),
            eta_seconds=round(pace * (self.progress.total_steps - done.step)),
        )
        if logs:
            keys = {"step", "total_steps", "epoch", "loss", "grad_norm", "learning_rate", "tokens_per_second", "eta_seconds"}
            record = self.progress.model_dump(mode="json", by_alias=True, include=keys)
            self._append(record | {"memoryBytes": done.memory})
        if logs or self.clock() - self._written >= WRITE_INTERVAL:
            self._write()

    def saved(self, checkpoint: Checkpoint) -> None:
        """Record that a checkpoint is complete."""
        self._update(checkpoint=checkpoint)
        self._write()

    def evaluated(self, step: int, epoch: float, evaluation: Evaluation) -> None:
        """Record an evaluation after a step, unless it is on record: a run may resume after the step of an evaluation."""
        self._update(eval_loss=evaluation.loss)
        if step != self._evaluated:
            measured = {"evalLoss": evaluation.loss, "perplexity": evaluation.perplexity}
            self._append({"step": step, "epoch": round(epoch, 4), **measured})
            self._evaluated = step
        self._write()

    def heartbeat(self) -> None:
        """Update the time of the report during long work other than training."""
        if self.clock() - self._written >= WRITE_INTERVAL:
            self._update()
            self._write()

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Exclude the time of the block from the measurement of speed."""
        before = self.clock()
        yield
        self._since += self.clock() - before

    def close(self) -> None:
        """Close the files after the last step, whether or not the run succeeds."""
        if self._tensorboard is not None:
            self._guard(self._tensorboard.close)
            self._tensorboard = None

    def stage(self, text: str) -> None:
        """Record that a stage begins after the last step."""
        self._update(stages=(*self.progress.stages, text))
        self._write()

    def stop(self) -> None:
        """Record that the run was stopped."""
        self._update(state="stopped", eta_seconds=None)
        self._write()

    def export(self, result: Result) -> None:
        """Record that training is done and the export starts."""
        self._update(state="exporting", eta_seconds=0, result=result)
        self._write()

    def finish(self, output: Output) -> None:
        """Record that the result is complete."""
        changes = {} if self.run.saving.after_export else {"checkpoint": None}
        self._update(state="finished", output=output, **changes)
        self._write()

    def _measure(self, tokens: int) -> tuple[float, float]:
        """Tokens per second, and seconds per step. The first step is slower, so it is excluded once there is another."""
        now = self.clock()
        elapsed = max(now - self._since, 1e-9)
        self._steps += 1
        if self._steps == 1:
            self._since = now
            return tokens / elapsed, elapsed
        self._tokens += tokens
        return self._tokens / elapsed, elapsed / (self._steps - 1)

    def _forget_after(self, step: int) -> None:
        if self.writes:
            kept = self._guard(lambda: forget_after(self.run.logs, step))
            self._evaluated = max((record["step"] for record in kept if "evalLoss" in record), default=0)

    def _update(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update={**changes, "last_report_time": now()})

    def _write(self) -> None:
        if not self.writes:
            return
        self._written = self.clock()
        self._guard(lambda: write_progress(self.run.logs / PROGRESS_FILE, self.progress))

    def _append(self, record: dict[str, Any]) -> None:
        if self.writes:
            self._guard(lambda: append_record(self.run.logs, record))
            if self._tensorboard is not None:
                tensorboard = self._tensorboard
                self._guard(lambda: tensorboard.add(record))

    def _guard(self, write: Callable[[], Made]) -> Made:
        """Write something below the output folder.

        Raises:
            OutputVolumeFull: no space left.
            OutputNotWritable: the folder is not writable, or another run has taken it.
        """
        check_still_held(self.run)
        try:
            return write()
        except OSError as error:
            raise output_error(self.run.output_dir, error) from error
