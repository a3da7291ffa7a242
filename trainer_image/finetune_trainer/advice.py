"""Advice for a run that does not fit into memory, by its configuration."""

from __future__ import annotations

import errno
import re
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.schema import TrainerConfig

    Memory = Literal["host", "device"]

_DEVICE = re.compile(r"(CUDA|XPU|HIP)( error:)? out of memory|OUT_OF_DEVICE_MEMORY|CUBLAS_STATUS_ALLOC_FAILED")
_HOST = re.compile(r"out of memory|can't allocate memory|not enough memory|OUT_OF_HOST_MEMORY")
_NAMES = {"OutOfMemoryError", "OutOfMemory"}
"""Names of exceptions of Ray and torch, which are not imported here."""


def lacking_memory(error: BaseException) -> Memory | None:
    """Which memory an error says is exhausted; None: the error is about something else."""
    text = str(error)
    known = type(error).__name__ in _NAMES
    if (known or isinstance(error, RuntimeError)) and _DEVICE.search(text):
        return "device"
    no_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return "host" if known or no_memory or (isinstance(error, RuntimeError) and _HOST.search(text)) else None


def to_save_memory(config: TrainerConfig, memory: Memory) -> str:
    """What to change, the cheapest change first, in the form `try A; B; or C`."""
    *first, last = _changes(config, memory)
    return f"try {'; '.join((*first, f'or {last}'))}"


def _changes(config: TrainerConfig, memory: Memory) -> Iterator[str]:
    general, training = config.general, config.training
    rows, accumulate = training.batch_size, training.gradient_accumulation_steps
    if rows > 1:
        fewer = rows // 2 if rows % 2 == 0 else 1
        yield (f"Training.batch_size: {fewer} with gradient_accumulation_steps: {rows // fewer * accumulate}, "
               "which takes as many rows a step")  # fmt: skip
    if general.enable_gradient_checkpointing is not True:
        yield "General.enable_gradient_checkpointing: true"
    if memory == "device" and training.mixed_precision == "no":
        yield "Training.mixed_precision: bf16"
    if general.lora_config is None:
        yield "General.lora_config, since an adapter needs a small part of the optimizer's memory"
    if training.strategy == "DDP" and training.ranks > 1 and general.frozen_dtype is None:
        yield f"Training.accelerate_mode: FSDP, which spreads the weights over the {training.ranks} workers"
    yield f"a Dataset.max_length below {config.dataset.max_length}"
    if memory == "host":
        yield "more memory for each worker (workers.memory of a FinetuneJob)"
    else:
        yield "a device with more memory"
