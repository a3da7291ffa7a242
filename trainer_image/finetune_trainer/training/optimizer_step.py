"""One optimizer step: forward and backward passes over its micro-batches, and the update of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.runtime import devices, distributed, parallel
from finetune_trainer.runtime.engine import make_batch
from finetune_trainer.training.seeding import seed_step

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_trainer.data.step_plan import Step
    from finetune_trainer.runtime.engine import Engine


MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm, the default of the HF Trainer and thus of llm-on-ray."""

SMALLEST_SCALE = 1.0
"""Gradients that are not finite at this scale of the loss are not so because of the scale."""


@dataclass(frozen=True)
class StepTaken:
    """Measurements of an optimizer step, over all ranks."""

    loss: float
    """Summed over the supervised tokens; finite."""
    grad_norm: float
    """Norm of the gradients before clipping; finite."""
    learning_rate: float
    supervised: int
    """Supervised tokens."""
    tokens: int
    """Non-padding tokens."""


@dataclass
class StepInFlight:
    """An optimizer step that the device may not have finished yet."""

    engine: Engine
    number: int
    """Of the step, from 1."""
    epoch: float
    """Passes over the rows once it is done."""
    rows: NDArray[np.int64]
    learning_rate: float
    numbers: devices.NumbersInFlight
    """The loss over this rank's supervised tokens, and the norm of the gradients before clipping."""
    _read: tuple[float, float] | None = None

    def read(self) -> tuple[float, float]:
        """The loss, summed over all ranks, and the norm. Waits for the device. A collective, the first time."""
        if self._read is None:
            loss, norms = distributed.sum_over_ranks(*self.numbers.wait())
            # The norm is the same on every rank, but a difference in its last digit must not let one rank alone go on.
            self._read = loss, norms / self.engine.worker.size
        return self._read

    def finish(self) -> StepTaken:
        """The measurements of the step. A collective.

        Raises:
            LossNotFinite: the loss or the gradients are NaN or infinite.
        """
        loss, norm = self.read()
        if not math.isfinite(loss):
            raise self._not_finite(f"the loss is {loss}")
        if not math.isfinite(norm):
            raise self._not_finite("the gradients are not finite")
        return StepTaken(loss, norm, self.learning_rate, *_count(self.engine, self.rows))

    def _not_finite(self, what: str) -> LossNotFinite:
        """The error of a loss or of gradients that are NaN or infinite; it names the rows of the step."""
        rows, engine = self.rows, self.engine
        places = [engine.data.train.place(int(row)) for row in np.sort(rows)[:SHOWN_ROWS]]
        more = [f"{len(rows) - SHOWN_ROWS} more"] if len(rows) > SHOWN_ROWS else []
        return LossNotFinite(f"{what} at step {self.number} of {engine.total_steps} (rows {', '.join(places + more)}); "
                             "look at those rows, or try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip


def take_step(engine: Engine, number: int, step: Step) -> StepInFlight:
    """Take an optimizer step. Its gradient is that of the mean loss over the supervised tokens of all ranks. A collective.

    With float16 the loss is scaled. If the gradients overflow, the same step is tried again with a lower scale.

    Args:
        engine: the model, the optimizer and the schedule.
        number: of the step, from 1.
        step: its rows.

    Raises:
        LossNotFinite: the loss or the gradients are NaN or infinite, and the weights are unchanged. An engine that reads
            late updates them, and `StepInFlight.finish` raises the error: nothing is kept of a step before it has finished.
    """
    rate: float = engine.schedule.get_last_lr()[0]
    taken = _compute_gradients(engine, number, step, rate)
    if not engine.reads_late:
        while math.isfinite(taken.read()[0]) and not math.isfinite(taken.read()[1]) and _lower_scale(engine):
            taken = _compute_gradients(engine, number, step, rate)
        taken.finish()
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    if engine.masters is not None:
        engine.masters.publish()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.schedule.step()
    return taken


def _compute_gradients(engine: Engine, number: int, step: Step, rate: float) -> StepInFlight:
    """Compute the clipped gradients."""
    worker = engine.worker
    rows = engine.data.train_rows[np.concatenate([part for micro in step.micro for part in micro])]
    seed_step(engine.run.config.training.seed, number, worker.rank)
    # DDP and FSDP divide the gradients by the number of ranks, but they are to be divided by the number of tokens only.
    scale = worker.size / max(_count(engine, rows)[0], 1)
    summed = torch.zeros((), device=worker.device)
    for position, shares in enumerate(step.micro, start=1):
        batch = make_batch(engine, engine.data.train, engine.data.train_rows[shares[worker.rank]])
        last = position == len(step.micro)
        with parallel.accumulating(engine.loss, last=last, reduces_each=engine.reduces_each):
            with engine.autocast():
                loss = engine.loss(batch)
            engine.scaler.scale(loss * scale).backward()
        if engine.masters is not None:
            engine.masters.take_gradients()
        summed += loss.detach()
    engine.scaler.unscale_(engine.optimizer)
    norm: Any = torch.nn.utils.clip_grad_norm_(engine.weights, MAX_GRADIENT_NORM)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # of FSDP2
    return StepInFlight(engine, number, step.epoch, rows, rate, devices.NumbersInFlight(summed, norm))


def _count(engine: Engine, rows: NDArray[np.int64]) -> tuple[int, int]:
    """Supervised and non-padding tokens of rows."""
    examples = engine.data.train
    supervised = int(np.maximum(examples.last[rows] - examples.first[rows], 0).sum())
    return supervised, int((examples.starts[rows + 1] - examples.starts[rows]).sum())


def _lower_scale(engine: Engine) -> bool:
    """Lower the scale of the loss after an overflow; return False if it is the lowest one, or if the loss is not scaled."""
    scaler = engine.scaler
    if not scaler.is_enabled() or (lower := scaler.get_scale() * scaler.get_backoff_factor()) < SMALLEST_SCALE:
        return False
    scaler.update(lower)
    engine.optimizer.zero_grad(set_to_none=True)
    return True
