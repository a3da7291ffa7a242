"""One optimizer step: forward and backward passes over its micro-batches, and the update of the weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from finetune_trainer.data import step_plan
from finetune_trainer.runtime import parallel
from finetune_trainer.runtime.engine import make_batch

if TYPE_CHECKING:
    from finetune_trainer.runtime.engine import Engine


MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm, the default of the HF Trainer and thus of llm-on-ray."""


def take_step(engine: Engine, step: step_plan.Step, tokens: int) -> float:
    """Take an optimizer step. Its gradient is that of the mean loss over the supervised tokens of all ranks.

    Args:
        engine: the model, the optimizer and the schedule.
        step: the rows.
        tokens: supervised tokens of the step, of all ranks.

    Returns:
        The loss summed over this rank's tokens.
    """
    worker = engine.worker
    # DDP and FSDP divide the gradients by the number of ranks, but they are to be divided by the number of tokens only.
    scale = worker.size / max(tokens, 1)
    summed = torch.zeros((), device=worker.device)
    for position, shares in enumerate(step.micro, start=1):
        batch = make_batch(engine, engine.data.train, engine.data.train_rows[shares[worker.rank]])
        with parallel.no_sync_unless(engine.loss, last=position == len(step.micro)):
            with engine.autocast():
                loss = engine.loss(batch)
            engine.scaler.scale(loss * scale).backward()
        summed += loss.detach()
    engine.scaler.unscale_(engine.optimizer)
    torch.nn.utils.clip_grad_norm_(engine.weights, MAX_GRADIENT_NORM)
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.schedule.step()
    return float(summed)
