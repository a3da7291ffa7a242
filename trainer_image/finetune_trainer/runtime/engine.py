"""The engine of a worker: the model, its optimizer and schedule, and the rows that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.data import batching, step_plan
from finetune_trainer.modeling import families

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from finetune_trainer.config.run import Run
    from finetune_trainer.data.examples import Examples
    from finetune_trainer.data.splits import Data
    from finetune_trainer.runtime.distributed import Worker
    from finetune_trainer.runtime.masters import Masters


@dataclass(frozen=True)
class Engine:
    """What an optimizer step works on: build_engine makes it, complete."""

    run: Run
    worker: Worker
    data: Data
    model: Any
    """The model, adapted or not."""
    loss: torch.nn.Module
    """SupervisedLoss, wrapped by DDP or FSDP."""
    learning: dict[str, torch.nn.Parameter]
    """What the optimizer updates, by the names of the model's trainable weights: these, or their masters."""
    masters: Masters | None
    """Weights in float32 beside the model's own; None: the model's own are updated."""
    optimizer: torch.optim.Optimizer
    schedule: Any
    """The learning-rate schedule, of torch."""
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler
    packed: bool
    """Whether the rows of a batch are packed, without padding."""
    total_steps: int
    """Optimizer steps of the whole run."""
    reads_late: bool
    """Whether the loss of a step is read when the next one has been sent to the device, which then never waits for the host.
    A CPU computes what it is told at once, and the scale of float16 needs to know the gradients before the update."""
    reduces_each: bool = True
    """Whether FSDP reduces the gradients of each micro-batch, and not those of a step."""
    forecast: str = ""
    """The memory that a step was predicted to take, in words; empty: there is no prediction for this device."""

    @property
    def sorts_by_length(self) -> bool:
        """Whether rows of similar length share a batch."""
        return self.run.config.dataset.group and not self.packed

    @property
    def weights(self) -> tuple[torch.nn.Parameter, ...]:
        """What the optimizer updates."""
        return tuple(self.learning.values())

    def plan(self, done: int) -> Iterator[step_plan.Step]:
        """The steps after those that are done."""
        lengths = self.data.train.lengths[self.data.train_rows]
        made_for, by_length = self.run.batch_ranks, self.sorts_by_length
        return step_plan.plan_steps(lengths, self.worker.size, self.run.config, done, by_length=by_length, made_for=made_for)


def make_batch(engine: Engine, examples: Examples, rows: NDArray[np.int64]) -> batching.Batch:
    """The tensors of some rows on this worker's device."""
    if engine.packed:
        return batching.pack(examples, rows, engine.data.longest).to(engine.worker.device)
    side = engine.run.config.dataset.padding_side
    longest = families.longest_input(engine.model)
    return batching.collate(examples, rows, engine.data.pad, side, longest).to(engine.worker.device)
