"""The engine of a worker: the model, its optimizer and schedule, and the rows that it is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.data import batching, step_plan
from finetune_trainer.modeling import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray

    from finetune_trainer.config.run import Run
    from finetune_trainer.data.examples import Examples
    from finetune_trainer.data.splits import Data
    from finetune_trainer.runtime.distributed import Worker


@dataclass
class Engine:
    """The state that an optimizer step works on."""

    run: Run
    worker: Worker
    data: Data
    model: Any
    """The model, adapted or not."""
    loss: torch.nn.Module
    """SupervisedLoss, wrapped by DDP or FSDP."""
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler
    packs_rows: bool
    """Whether the rows of a batch are packed, without padding."""
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: Any = field(init=False)
    weights: list[torch.nn.Parameter] = field(init=False)
    """The trainable ones."""

    @property
    def sorts_by_length(self) -> bool:
        """Whether rows of similar length share a batch."""
        return self.run.config.dataset.group and not self.packs_rows

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return step_plan.total_steps(len(self.data.train_rows), self.worker.size, self.run.config)


def make_batch(engine: Engine, examples: Examples, rows: NDArray[np.int64]) -> batching.Batch:
    """The tensors of some rows on this worker's device."""
    if engine.packs_rows:
        return batching.pack(examples, rows).to(engine.worker.device)
    side = engine.run.config.dataset.padding_side
    longest = load.longest_input(engine.model)
    return batching.collate(examples, rows, engine.data.pad, side, longest).to(engine.worker.device)
