"""One optimizer step: forward and backward passes over its micro-batches, and the update of the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.runtime import distributed, parallel
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


def take_step(engine: Engine, number: int, step: Step) -> StepTaken:
    """Take an optimizer step. Its gradient is that of the mean loss over the supervised tokens of all ranks. A collective.

    With float16 the loss is scaled. If the gradients overflow, the same step is tried again with a lower scale.

    Args:
        engine: the model, the optimizer and the schedule.
        number: of the step, from 1.
        step: its rows.

    Raises:
        LossNotFinite: the loss or the gradients are NaN or infinite. The weights are unchanged.
    """
    examples = engine.data.train
    rows = engine.data.train_rows[np.concatenate([part for micro in step.micro for part in micro])]
    supervised = int(np.maximum(examples.last[rows] - examples.first[rows], 0).sum())
    tokens = int((examples.starts[rows + 1] - examples.starts[rows]).sum())
    rate: float = engine.schedule.get_last_lr()[0]
    loss, norm = _compute_gradients(engine, number, step, supervised)
    while math.isfinite(loss) and not math.isfinite(norm) and _lower_scale(engine):
        loss, norm = _compute_gradients(engine, number, step, supervised)
    if not math.isfinite(loss):
        raise _not_finite(engine, f"the loss is {loss}", number, rows)
    if not math.isfinite(norm):
        raise _not_finite(engine, "the gradients are not finite", number, rows)
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.schedule.step()
    return StepTaken(loss, norm, rate, supervised, tokens)


def _compute_gradients(engine: Engine, number: int, step: Step, supervised: int) -> tuple[float, float]:
    """Compute the clipped gradients; return the loss, summed over all ranks, and the norm before clipping."""
    worker = engine.worker
    seed_step(engine.run.config.training.seed, number, worker.rank)
    # DDP and FSDP divide the gradients by the number of ranks, but they are to be divided by the number of tokens only.
    scale = worker.size / max(supervised, 1)
    summed = torch.zeros((), device=worker.device)
    for position, shares in enumerate(step.micro, start=1):
        batch = make_batch(engine, engine.data.train, engine.data.train_rows[shares[worker.rank]])
        with parallel.no_sync_unless(engine.loss, last=position == len(step.micro)):
            with engine.autocast():
                loss = engine.loss(batch)
            engine.scaler.scale(loss * scale).backward()
        summed += loss.detach()
    engine.scaler.unscale_(engine.optimizer)
    norm: Any = torch.nn.utils.clip_grad_norm_(engine.weights, MAX_GRADIENT_NORM)
    norm = float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of FSDP2
    # The norm is the same on every rank, but a difference in its last digit must not let one rank alone go on.
    loss_of_all, norms = distributed.sum_over_ranks(float(summed), norm)
    return loss_of_all, norms / worker.size


def _lower_scale(engine: Engine) -> bool:
    """Lower the scale of the loss after an overflow; return False if it is the lowest one, or if the loss is not scaled."""
    scaler = engine.scaler
    if not scaler.is_enabled() or (lower := scaler.get_scale() * scaler.get_backoff_factor()) < SMALLEST_SCALE:
        return False
    scaler.update(lower)
    engine.optimizer.zero_grad(set_to_none=True)
    return True


def _not_finite(engine: Engine, what: str, number: int, rows: NDArray[np.int64]) -> LossNotFinite:
    """The error of a loss or of gradients that are NaN or infinite; it names the rows of the step."""
    places = [engine.data.train.place(int(row)) for row in np.sort(rows)[:SHOWN_ROWS]]
    more = [f"{len(rows) - SHOWN_ROWS} more"] if len(rows) > SHOWN_ROWS else []
    return LossNotFinite(f"{what} at step {number} of {engine.total_steps} (rows {', '.join(places + more)}); "
                         "look at those rows, or try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip
