"""Rank 0's account of the run: progress.json for the operator and the console, metrics.jsonl for the record."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import output_error
from finetune_trainer.progress import PROGRESS_FILE, Checkpoint, Output, Progress, Result, World, write_atomically, write_progress

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.run import Run

METRICS_FILE = "metrics.jsonl"
"""One JSON object for each logging step."""

WRITE_INTERVAL = 0.5
"""Seconds between two writes of progress.json while nothing but the step number changes."""


@dataclass(frozen=True)
class StepDone:
    """How an optimizer step went."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Passes over the rows done."""
    loss: float
    """Mean loss per supervised token since the last logging step."""
    learning_rate: float
    """Of this step."""
    tokens: int
    """Non-padding tokens of this step, of all ranks."""


@dataclass
class Tracker:
    """Keeps and writes the progress of a run. Only rank 0 has one that writes."""

    run: Run
    writes: bool
    progress: Progress = field(init=False)
    _written: float = 0.0
    _since: float = 0.0
    """When the measurement of speed began, on the monotonic clock."""
    _tokens: int = 0
    _steps: int = 0

    def __post_init__(self) -> None:
        self.progress = Progress(attempt=self.run.attempt, last_report_time=now())

    def start(self, world: World, total_steps: int, checkpoint: Checkpoint | None = None, restarts: int = 0) -> None:
        """Training begins, or goes on from a checkpoint: what was recorded after it is forgotten."""
        step = 0 if checkpoint is None else checkpoint.step
        percent = 100 * step // total_steps
        self._update(state="training", world=world, total_steps=total_steps, restarts=restarts)
        self._update(step=step, percent=percent, checkpoint=checkpoint)
        self._forget_after(step)
        self._write()
        self._since = time.monotonic()

    def step(self, done: StepDone, *, logs: bool) -> None:
        """An optimizer step is done.

        Args:
            done: which one, and how it went.
            logs: whether it is a logging step, or the first or last one: it goes on record.
        """
        speed, pace = self._measure(done.tokens)
        self._update(
            step=done.step,
            epoch=round(done.epoch, 4),
            percent=100 * done.step // self.progress.total_steps,
            loss=done.loss,
            learning_rate=done.learning_rate,
            tokens_per_second=round(speed, 1),
            eta_seconds=round(pace * (self.progress.total_steps - done.step)),
        )
        if logs:
            keys = {"step", "total_steps", "epoch", "loss", "learning_rate", "tokens_per_second", "eta_seconds"}
            self._append(self.progress.model_dump(mode="json", by_alias=True, include=keys))
        if logs or time.monotonic() - self._written >= WRITE_INTERVAL:
            self._write()

    def save(self, save: Callable[[], Checkpoint]) -> None:
        """A checkpoint is made; the time that it takes does not count as training."""
        before = time.monotonic()
        self._update(checkpoint=save())
        self._write()
        self._since += time.monotonic() - before

    def stop(self) -> None:
        """The run ends before its time, as it was asked to."""
        self._update(state="stopped", eta_seconds=None)
        self._write()

    def export(self, result: Result) -> None:
        """Training and evaluation are done; the result is being written."""
        self._update(state="exporting", eta_seconds=0, eval_loss=result.eval_loss, result=result)
        if result.eval_loss is not None:
            keys = {"step", "evalLoss", "perplexity"}
            record = {"step": self.progress.step, **result.model_dump(by_alias=True)}
            self._append({key: value for key, value in record.items() if key in keys})
        self._write()

    def finish(self, output: Output) -> None:
        """The result is complete."""
        changes = {} if self.run.saving.after_export else {"checkpoint": None}
        self._update(state="finished", output=output, **changes)
        self._write()

    def _measure(self, tokens: int) -> tuple[float, float]:
        """Tokens per second, and seconds per step. The first step is slower: it counts only while it is alone."""
        now = time.monotonic()
        elapsed = max(now - self._since, 1e-9)
        self._steps += 1
        if self._steps == 1:
            self._since = now
            return tokens / elapsed, elapsed
        self._tokens += tokens
        return self._tokens / elapsed, elapsed / (self._steps - 1)

    def _forget_after(self, step: int) -> None:
        if not self.writes:
            return
        path = self.run.logs / METRICS_FILE
        try:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            kept = [line for line in lines if _is_before(line, step)]
            if kept != lines:
                write_atomically(path, b"".join(kept))
        except OSError as error:
            raise output_error(self.run.output_dir, error) from error

    def _update(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update={**changes, "last_report_time": now()})

    def _write(self) -> None:
        if not self.writes:
            return
        self._written = time.monotonic()
        try:
            write_progress(self.run.logs / PROGRESS_FILE, self.progress)
        except OSError as error:
            raise output_error(self.run.output_dir, error) from error

    def _append(self, record: dict[str, Any]) -> None:
        if not self.writes:
            return
        try:
            with (self.run.logs / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise output_error(self.run.output_dir, error) from error


def _is_before(line: bytes, step: int) -> bool:
    """Whether this is the record of one of the first steps; evaluation comes again, and a torn line means nothing."""
    with suppress(ValueError):
        record = json.loads(line)
        return line.endswith(b"\n") and "loss" in record and record["step"] <= step
    return False


def now() -> datetime:
    """The time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
