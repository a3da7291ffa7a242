"""The training loop: optimizer steps, each with its record, its checkpoint and its evaluation where they are due."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_trainer.data import step_plan
from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.runtime import devices, distributed, stop
from finetune_trainer.tracking.measurements import Evaluation, StepDone
from finetune_trainer.tracking.progress import Result
from finetune_trainer.training.evaluation import evaluate
from finetune_trainer.training.optimizer_step import take_step
from finetune_trainer.training.seeding import seed_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from finetune_trainer.checkpoint.checkpointer import Checkpointer, Start
    from finetune_trainer.runtime.engine import Engine
    from finetune_trainer.tracking.measurements import RunningLoss
    from finetune_trainer.tracking.tracker import Tracker

    Report = Callable[[dict[str, Any]], None]


@dataclass
class TrainingLoop:
    """The loop over the steps of a run, on one worker."""

    engine: Engine
    tracker: Tracker
    checkpointer: Checkpointer
    report: Report | None
    """Takes the metrics of each logging step."""
    is_preempted: Callable[[], bool]
    """Whether the node of a worker is about to be taken away; called on rank 0."""

    def __post_init__(self) -> None:
        data = self.engine.data
        self._lengths = data.train.lengths[data.train_rows]
        self._supervised = data.train.supervised[data.train_rows]

    def run(self, start: Start) -> Result | None:
        """Take all optimizer steps that are left; None: a stop was requested, and the last step is in a checkpoint.

        Raises:
            LossNotFinite: the loss became NaN or infinite.
            OutputVolumeFull: no space is left for a checkpoint.
        """
        engine, run, total = self.engine, self.engine.run, self.engine.total_steps
        # The plan includes the step before the first one: if it ended an epoch, an evaluation is due.
        plan = step_plan.plan_steps(
            self._lengths, engine.worker.size, run.config, max(start.step - 1, 0), by_length=engine.sorts_by_length
        )
        running_loss, preempted, evaluation = start.running_loss, False, None
        if start.step and ((before := next(plan)).ends_epoch or start.step == total):
            evaluation = self._evaluate(start.step, before.epoch)
        for number, step in zip(range(start.step + 1, total + 1), plan, strict=False):
            stops, leaves = self._take(number, step, running_loss)
            if stops or (leaves and not preempted) or run.saving.is_due(number, ends_epoch=step.ends_epoch):
                self._save(number, running_loss)
            preempted = leaves
            if stops:
                return None
            if step.ends_epoch or number == total:
                # It follows the checkpoint: a worker that is stopped may have no time for an evaluation.
                evaluation = self._evaluate(number, step.epoch)
        return make_result(running_loss, evaluation)

    def _take(self, number: int, step: step_plan.Step, running_loss: RunningLoss) -> tuple[bool, bool]:
        """Take a step and record it; return whether a stop is requested, and whether a worker is preempted."""
        engine, worker = self.engine, self.engine.worker
        seed_step(engine.run.config.training.seed, number, worker.rank)
        rows = np.concatenate([part for micro in step.micro for part in micro])
        supervised, tokens = int(self._supervised[rows].sum()), int(self._lengths[rows].sum())
        rate = engine.schedule.get_last_lr()[0]
        loss = take_step(engine, step, supervised)
        # Only rank 0 looks for requests. The other ranks learn of them by the sum, which is needed anyway.
        requests = (stop.requested(engine.run.logs), self.is_preempted()) if worker.is_rank0 else (False, False)
        loss, stops, leaves = distributed.sum_over_ranks(loss, *map(float, requests))
        if not math.isfinite(loss):
            raise not_finite(engine, loss, number, engine.data.train_rows[rows])
        mean = running_loss.add(loss, supervised)
        self._record(StepDone(number, step.epoch, mean, rate, tokens, devices.peak_memory(worker.device)), running_loss)
        return stops > 0, leaves > 0

    def _record(self, done: StepDone, running_loss: RunningLoss) -> None:
        logs = done.step % self.engine.run.config.training.logging_steps == 0 or done.step in (1, self.engine.total_steps)
        self.tracker.step(done, logs=logs)
        if logs and self.report is not None:
            self.report({"step": done.step, "epoch": done.epoch, "loss": done.loss, "learning_rate": done.learning_rate})
        if logs:
            running_loss.clear()

    def _save(self, step: int, running_loss: RunningLoss) -> None:
        """Write a checkpoint. A collective."""
        self.tracker.save(lambda: self.checkpointer.save(step, running_loss))

    def _evaluate(self, step: int, epoch: float) -> Evaluation | None:
        """Evaluate the model after a step, if there are rows for it. A collective."""
        rows = len(self.engine.data.eval_rows)
        if rows and step == self.engine.total_steps:
            self.tracker.stage(f"evaluating the model on {rows} rows")
        with self.tracker.untimed():
            evaluation = evaluate(self.engine, self.tracker.heartbeat)
            if evaluation is not None:
                self.tracker.evaluated(step, epoch, evaluation)
        return evaluation


def make_result(running_loss: RunningLoss, evaluation: Evaluation | None) -> Result:
    """The losses of the run; the evaluation is that after the last step."""
    if evaluation is None:
        return Result(train_loss=running_loss.mean, first_loss=running_loss.first)
    measured = {"eval_loss": evaluation.loss, "perplexity": evaluation.perplexity}
    return Result(train_loss=running_loss.mean, first_loss=running_loss.first, **measured)


def not_finite(engine: Engine, loss: float, number: int, rows: NDArray[np.int64]) -> LossNotFinite:
    """The error of a loss that became NaN or infinite; it names the rows of the step."""
    places = [engine.data.train.place(int(row)) for row in np.sort(rows)[:SHOWN_ROWS]]
    more = [f"{len(rows) - SHOWN_ROWS} more"] if len(rows) > SHOWN_ROWS else []
    return LossNotFinite(f"the loss is {loss} at step {number} of {engine.total_steps} (rows {', '.join(places + more)}); "
                         "look at those rows, or try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip
