"""Predict the memory of a run before its first step, and save some where it would not fit otherwise."""

from __future__ import annotations

import dataclasses
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch

from finetune_trainer import memory
from finetune_trainer.data import step_plan
from finetune_trainer.modeling import families, load
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.training.compiling import is_wanted

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.run import Run
    from finetune_trainer.data.splits import Data
    from finetune_trainer.runtime.distributed import Worker
    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)

LOOKED_AT = 200
"""Steps whose size is looked at, at most: rows are in random order, so others are hardly larger."""


@dataclass(frozen=True)
class MemoryPlan:
    """How a run keeps within the memory of its device."""

    forecast: str = ""
    """What a step was predicted to take, in words; empty: the memory of the device is unknown, or what the model needs of it."""
    reduces_each: bool = True
    """As in `memory.Step`."""


def prepare_memory(run: Run, worker: Worker, model: Any, rows: Data, dtype: torch.dtype, room: int | None = None) -> MemoryPlan:
    """Let the model recompute its activations if the configuration leaves it open and its steps would not fit. A collective.

    Args:
        run: the configuration.
        worker: this process.
        model: as `load.load_model` returns it.
        rows: what is trained.
        dtype: compute type.
        room: memory of the device; None: ask it.
    """
    room = devices.total_memory(worker.device) if room is None else room
    wanted, made = run.config.general.enable_gradient_checkpointing, None
    if room and model.config.model_type in families.FAMILIES:
        shape = memory.Shape.of(model.config.to_dict())
        step = dataclasses.replace(largest_step(run, worker, model, rows, dtype, room), checkpointing=wanted is True)
        made = memory.fitted(shape, step, wanted)
    # Ranks may have different GPUs, and reduce alike.
    reduces_each = any(distributed.all_gather(worker, lambda: made is None or made.reduces_each))
    if made is None:
        return MemoryPlan(reduces_each=reduces_each)
    made = dataclasses.replace(made, reduces_each=reduces_each)
    if wanted == "auto" and made.checkpointing:
        load.recompute_activations(model)
    there = f"of the GPU's {room / memory.GIB:.0f}"
    text = f"a step of {step.tokens} tokens was predicted to take {memory.predict(shape, made)} {there}"
    if worker.is_rank0:
        _tell_savings(made, f"since steps would take {memory.predict(shape, step)} {there}", wanted)
        log.info("%s", text)
    return MemoryPlan(text, reduces_each)


def _tell_savings(made: memory.Step, why: str, wanted: bool | Literal["auto"]) -> None:
    """Say what is done to save memory."""
    if made.reduces_each:
        log.info("gradients are reduced after each micro-batch, %s", why)
    if made.checkpointing and wanted == "auto":
        log.info("activations are recomputed, %s", why)


def largest_step(run: Run, worker: Worker, model: Any, rows: Data, dtype: torch.dtype, room: int) -> memory.Step:
    """The largest micro-batch of the first steps on any rank."""
    training = run.config.training
    lengths, supervised = rows.train.lengths[rows.train_rows], rows.train.supervised[rows.train_rows]
    group = run.config.dataset.group
    packs = group and families.family_of(model.config.model_type).packs_rows
    made_for = run.batch_ranks or worker.size
    count = min(LOOKED_AT, step_plan.total_steps(lengths, made_for, run.config))
    steps = step_plan.plan_steps(lengths, worker.size, run.config, 0, by_length=group and not packs, made_for=made_for)
    plan = list(islice(steps, count))
    shares = [share for step in plan for micro in step.micro for share in micro if len(share)]
    sizes = [int(lengths[share].sum() if packs else len(share) * lengths[share].max()) for share in shares]
    return memory.Step(
        tokens=max(sizes),
        supervised=max(int(supervised[share].sum()) for share in shares),
        adapter=families.adapter_of(run.config.general.lora_config, model.config.model_type),
        optimizer=training.optimizer,
        lower=dtype != torch.float32,
        compiled=is_wanted(run, worker.device),
        fp8=run.config.general.frozen_dtype == "fp8",
        ranks=worker.size,
        sharded=training.strategy == "FSDP",
        micro_batches=max(len(step.micro) for step in plan),
        one_host=worker.local_size == worker.size,
        device=room,
    )


@contextmanager
def explained(engine: Engine) -> Iterator[None]:
    """Add the prediction to an error for lack of the device's memory, for `explain`."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        if engine.forecast:
            error.add_note(engine.forecast)
        raise
