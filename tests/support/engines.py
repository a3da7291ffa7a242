"""Engines of the trainer in this process, and its loop over them."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.config.run import Run, Saving
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.modeling.load import load_tokenizer
from finetune_trainer.runtime import distributed
from finetune_trainer.tracking.tracker import Tracker
from finetune_trainer.training.loop import TrainingLoop
from finetune_trainer.training.seeding import seed_everything
from finetune_trainer.training.setup import build_engine, load_data

if TYPE_CHECKING:
    from tests.support.trainer import Command

    from finetune_trainer.modeling.frozen import Product
    from finetune_trainer.runtime.distributed import Worker
    from finetune_trainer.runtime.engine import Engine


def emulated_product(
    left: torch.Tensor, right: torch.Tensor, left_scale: torch.Tensor, right_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """What the tensor cores of a GPU compute from float8, computed in float32 on a CPU."""
    made = (left.float() @ right.float().t()) * left_scale * right_scale.t()
    # torch 2.11 loses the gradient of a compiled function that ends with a conversion to the type that there is.
    return made if made.dtype == dtype else made.to(dtype)


def make(
    command: Command,
    name: str,
    dtype: torch.dtype = torch.float32,
    *,
    every: int = 0,
    worker: Worker | None = None,
    product: Product | None = None,
) -> Engine:
    """The engine of a command, for a run named r with an output folder of this name, and a checkpoint every so many steps.

    A product stands in for a GPU: the engine is on a CPU, whatever the command asks for.
    """
    config = TrainerConfig.model_validate(command.config)
    run = Run(config=config, output_dir=command.folder / name, dataset_dir=command.folder, run_name="r", saving=Saving(every))
    run.logs.mkdir(parents=True, exist_ok=True)
    options = {} if product is None else {"product": product}
    if worker is None:
        worker = distributed.single_process(config.training) if product is None else distributed.Worker(torch.device("cpu"))
    seed_everything(config.training.seed)
    return build_engine(run, worker, load_data(run, worker, load_tokenizer(run)), dtype, **options)


def train(engine: Engine, report: Any = None, **writing: Any) -> Engine:
    """Take the steps that are left, from the newest checkpoint on; `writing` says how checkpoints are written."""
    checkpointer, tracker = Checkpointer(engine, **writing), Tracker(engine.run, writes=engine.worker.is_rank0)
    start = checkpointer.restore(lambda _: False)
    tracker.start(distributed.describe(engine.worker, "DDP", "float32"), engine.total_steps, start.checkpoint, 0)
    TrainingLoop(engine, tracker, checkpointer, report, bool).run(start)
    return engine


def reading_late(engine: Engine) -> Engine:
    """The same engine, reading the loss of a step as on a GPU."""
    return dataclasses.replace(engine, reads_late=True)
