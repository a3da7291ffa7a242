"""The training loop: optimizer steps, each with its record, its checkpoint and its evaluation where they are due."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.runtime import devices, distributed, stop
from finetune_trainer.tracking.measurements import Evaluation, StepDone
from finetune_trainer.tracking.progress import Result
from finetune_trainer.training.evaluation import evaluate
from finetune_trainer.training.optimizer_step import take_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.checkpoint.checkpointer import Checkpointer, Start
    from finetune_trainer.runtime.engine import Engine
    from finetune_trainer.tracking.measurements import RunningLoss
    from finetune_trainer.tracking.tracker import Tracker
    from finetune_trainer.training.optimizer_step import StepInFlight

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

    def run(self, start: Start) -> Result | None:
        """Take all optimizer steps that are left; None: a stop was requested, and the last step is in a checkpoint.

        Raises:
            LossNotFinite: the loss, the gradients or the weights became NaN or infinite.
            OutputVolumeFull: no space is left for a checkpoint.
        """
        try:
            result = self._take_steps(start)
            self._finish_checkpoint()
        except Exception:
            # Another attempt goes on from the checkpoint in flight. If that fails, too, the first error is the one to tell.
            with suppress(Exception):
                self._finish_checkpoint()
            raise
        return result

    def _take_steps(self, start: Start) -> Result | None:
        """Take the steps, each with what is due after it."""
        total, saving = self.engine.total_steps, self.engine.run.saving
        running_loss, was_preempted, evaluation = start.running_loss, False, None
        # Before the steps that are left comes the last one that is done: if it ended an epoch, an evaluation is due.
        plan = self.engine.plan(max(start.step - 1, 0))
        if start.step and ((before := next(plan)).ends_epoch or start.step == total):
            evaluation = self._evaluate(start.step, before.epoch)
        in_flight: StepInFlight | None = None
        for number, step in zip(range(start.step + 1, total + 1), plan, strict=False):
            taken = take_step(self.engine, number, step)
            self._record(in_flight, running_loss)
            stops, preempted = self._requests()
            saves = stops or (preempted and not was_preempted) or saving.is_due(number, ends_epoch=step.ends_epoch)
            evaluates = step.ends_epoch or number == total
            # Nothing is kept of a step, and no other work begins, before its loss and its gradients are known to be finite.
            in_flight = taken if self.engine.reads_late and not saves and not evaluates else None
            if in_flight is None:
                self._record(taken, running_loss)
            if saves:
                self._save(number, running_loss, waits=stops or preempted)
            if stops:
                return None
            was_preempted = preempted
            if evaluates:
                # It follows the checkpoint: a worker that is stopped may have no time for an evaluation.
                evaluation = self._evaluate(number, step.epoch)
        self.checkpointer.check_finite(total)
        return make_result(running_loss, evaluation)

    def _requests(self) -> tuple[bool, bool]:
        """Whether a stop is requested, and whether a worker is preempted. Only rank 0 looks. A collective.

        It is also where the ranks agree that a checkpoint is written, or has failed.
        """
        found = (stop.requested(self.engine.run.logs), self.is_preempted()) if self.engine.worker.is_rank0 else (False, False)
        stops, preempted, writing = distributed.sum_over_ranks(*map(float, (*found, self.checkpointer.is_writing)))
        if not writing:
            self._finish_checkpoint()
        return stops > 0, preempted > 0

    def _record(self, in_flight: StepInFlight | None, running_loss: RunningLoss) -> None:
        """Wait for the end of a step, and record it. A collective."""
        if in_flight is None:
            return
        taken, number = in_flight.finish(), in_flight.number
        mean, memory = running_loss.add(taken.loss, taken.supervised), devices.peak_memory(self.engine.worker.device)
        done = StepDone(number, in_flight.epoch, mean, taken.grad_norm, taken.learning_rate, taken.tokens, memory)
        logs = number % self.engine.run.config.training.logging_steps == 0 or number in (1, self.engine.total_steps)
        self.tracker.step(done, logs=logs)
        if logs and self.report is not None:
            keys = ("step", "epoch", "loss", "grad_norm", "learning_rate")
            self.report({key: getattr(done, key) for key in keys})
        if logs:
            running_loss.clear()

    def _save(self, step: int, running_loss: RunningLoss, *, waits: bool) -> None:
        """Begin to write a checkpoint, and wait for its end if there may be no time later. A collective."""
        with self.tracker.untimed():
            self._finish_checkpoint()
            self.checkpointer.begin(step, running_loss)
            if waits:
                self._finish_checkpoint()

    def _finish_checkpoint(self) -> None:
        """Wait for the checkpoint in flight, if there is one, and record it."""
        checkpoint = self.checkpointer.finish()
        if checkpoint is not None:
            self.tracker.saved(checkpoint)

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
