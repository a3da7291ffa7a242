"""Rank 0's account of the run: progress.json for the operator and the console, metrics.jsonl for the record.

A line of metrics.jsonl is a logging step, an evaluation (it has `evalLoss`) or an event (it has `event`).
"""

from __future__ import annotations

import json
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_trainer.errors import output_error
from finetune_trainer.tracking.progress import (
    PROGRESS_FILE,
    Checkpoint,
    Output,
    Progress,
    Result,
    World,
    read_progress,
    write_atomically,
    write_progress,
)
from finetune_trainer.tracking.tensorboard import Curves

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from finetune_trainer.config.run import Run
    from finetune_trainer.training.evaluation import Evaluation

Made = TypeVar("Made")

METRICS_FILE = "metrics.jsonl"
"""One JSON object a line."""

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
    memory: int
    """Most memory that rank 0 has held so far, in bytes: of its GPU, else of its process."""


@dataclass
class Tracker:
    """Keeps and writes the progress of a run. Only rank 0 has one that writes."""

    run: Run
    writes: bool
    clock: Callable[[], float] = time.monotonic
    """Seconds since some moment."""
    progress: Progress = field(init=False)
    _written: float = 0.0
    _since: float = 0.0
    """When the measurement of speed began, on the monotonic clock."""
    _tokens: int = 0
    _steps: int = 0
    _began: float = 0.0
    _evaluated: int = 0
    """Step of the last evaluation on record."""
    _curves: Curves | None = None

    def __post_init__(self) -> None:
        self.progress = Progress(attempt=self.run.attempt, last_report_time=now())

    @property
    def seconds(self) -> float:
        """How long this attempt has trained and evaluated."""
        return self.clock() - self._began

    def start(self, world: World, total_steps: int, checkpoint: Checkpoint | None = None, restarts: int = 0) -> None:
        """Training begins, or goes on from a checkpoint: what was recorded after it is forgotten."""
        step = 0 if checkpoint is None else checkpoint.step
        percent = 100 * step // total_steps
        self._update(state="training", world=world, total_steps=total_steps, restarts=restarts)
        self._update(stages=(*_stages(self.run), "training") if self.writes else ())
        self._update(step=step, percent=percent, checkpoint=checkpoint)
        self._forget_after(step)
        if self.writes and self.run.config.general.report_to == "tensorboard":
            self._curves = self._guard(lambda: Curves.begin(self.run.logs, step))
        if checkpoint is not None or restarts:
            self._append({"event": "resumed", "step": step, "attempt": self.run.attempt, "restarts": restarts})
        self._write()
        self._since = self._began = self.clock()

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
            record = self.progress.model_dump(mode="json", by_alias=True, include=keys)
            self._append(record | {"memoryBytes": done.memory})
        if logs or self.clock() - self._written >= WRITE_INTERVAL:
            self._write()

    def save(self, save: Callable[[], Checkpoint]) -> None:
        """A checkpoint is made."""
        with self.aside():
            self._update(checkpoint=save())
            self._write()

    def evaluated(self, step: int, epoch: float, evaluation: Evaluation) -> None:
        """The model was evaluated after a step; after the one from which a run goes on it may have been before."""
        self._update(eval_loss=evaluation.loss)
        if step != self._evaluated:
            measured = {"evalLoss": evaluation.loss, "perplexity": evaluation.perplexity}
            self._append({"step": step, "epoch": round(epoch, 4), **measured})
            self._evaluated = step
        self._write()

    def alive(self) -> None:
        """Something long goes on that is no training."""
        if self.clock() - self._written >= WRITE_INTERVAL:
            self._update()
            self._write()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """The time until the end of the block does not count as training."""
        before = self.clock()
        yield
        self._since += self.clock() - before

    def close(self) -> None:
        """No step comes any more, whatever the reason."""
        if self._curves is not None:
            self._guard(self._curves.close)
            self._curves = None

    def stage(self, text: str) -> None:
        """Something begins that comes after the last step."""
        self._update(stages=(*self.progress.stages, text))
        self._write()

    def stop(self) -> None:
        """The run ends before its time, as it was asked to."""
        self._update(state="stopped", eta_seconds=None)
        self._write()

    def export(self, result: Result) -> None:
        """Training and evaluation are done; the result is being written."""
        self._update(state="exporting", eta_seconds=0, result=result)
        self._write()

    def finish(self, output: Output) -> None:
        """The result is complete."""
        changes = {} if self.run.saving.after_export else {"checkpoint": None}
        self._update(state="finished", output=output, **changes)
        self._write()

    def _measure(self, tokens: int) -> tuple[float, float]:
        """Tokens per second, and seconds per step. The first step is slower: it counts only while it is alone."""
        now = self.clock()
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

        def forget() -> list[bytes]:
            lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
            kept = [line for line in lines if _record(line).get("step", step + 1) <= step]
            if kept != lines:
                write_atomically(path, b"".join(kept))
            return kept

        kept = [json.loads(line) for line in self._guard(forget)]
        self._evaluated = max((record["step"] for record in kept if "evalLoss" in record), default=0)

    def _update(self, **changes: Any) -> None:
        self.progress = self.progress.model_copy(update={**changes, "last_report_time": now()})

    def _write(self) -> None:
        if not self.writes:
            return
        self._written = self.clock()
        self._guard(lambda: write_progress(self.run.logs / PROGRESS_FILE, self.progress))

    def _append(self, record: dict[str, Any]) -> None:
        if not self.writes:
            return

        def append() -> None:
            with (self.run.logs / METRICS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            if self._curves is not None:
                self._curves.add(record)

        self._guard(append)

    def _guard(self, write: Callable[[], Made]) -> Made:
        """Write something below the output folder.

        Raises:
            OutputVolumeFull: no space left.
            OutputNotWritable: the folder refuses to be written.
        """
        try:
            return write()
        except OSError as error:
            raise output_error(self.run.output_dir, error) from error


def enter_stage(run: Run, rank: int, text: str, *, first: bool = False) -> None:
    """Tell on rank 0, before there is a tracker, what begins; the `first` stage forgets those of workers that were lost."""
    if rank != 0:
        return
    path = run.logs / PROGRESS_FILE
    stages = () if first else _stages(run)
    with suppress(OSError, ValueError):  # whoever writes next has to say so
        last = read_progress(path) or Progress(attempt=run.attempt, last_report_time=now())
        write_progress(path, last.model_copy(update={"stages": (*stages, text), "last_report_time": now()}))


def _stages(run: Run) -> tuple[str, ...]:
    with suppress(OSError, ValueError):
        last = read_progress(run.logs / PROGRESS_FILE)
        return () if last is None else last.stages
    return ()


def read_metrics(logs: Path) -> list[dict[str, Any]]:
    """All records of a run, in the order of the steps; none when nothing was recorded.

    Raises:
        OSError: the file cannot be read.
    """
    path = logs / METRICS_FILE
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    return [record for record in map(_record, lines) if record]


def _record(line: bytes) -> dict[str, Any]:
    """What a line of metrics.jsonl tells; a torn one tells nothing."""
    with suppress(ValueError):
        record: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        return record
    return {}


def now() -> datetime:
    """The time in UTC, in whole seconds."""
    return datetime.now(UTC).replace(microsecond=0)
