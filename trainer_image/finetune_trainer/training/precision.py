"""Choose the type that a worker computes in."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import torch

from finetune_trainer.errors import ConfigError, DeviceNotFound
from finetune_trainer.modeling.frozen import CAPABILITY
from finetune_trainer.runtime import cpu, devices, distributed

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)


def choose_dtype(run: Run, worker: Worker) -> cpu.Compute:
    """Choose the compute type, and set up the CPU's threads and instruction set before its first use."""
    training = run.config.training
    check_frozen(run, devices.capability(worker.device))
    if worker.device.type != "cpu":
        return cpu.Compute({"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[training.mixed_precision])
    precision = cpu.choose_precision(training.mixed_precision)
    threads = cpu.choose_threads(training.resources_per_worker.CPU, worker.local_size)
    bound = cpu.bind(threads, worker.local_rank, worker.local_size)
    torch.set_num_threads(threads)
    precision = cpu.agree(distributed.all_gather(worker, lambda: precision))[worker.rank]
    notes = (precision.note,) if precision.note else ()
    compute = cpu.Compute(precision.dtype, os.environ.get(cpu.ISA_VARIABLE, ""), threads, bound, notes)
    if worker.is_rank0:
        log.info("CPU: %s", ", ".join(f"{name}: {line}" for name, line in compute.environment().items()))
    elif compute.cpus:
        log.info("bound to CPUs %s", cpu.ranges(compute.cpus))
    return compute


def check_frozen(run: Run, capability: tuple[int, int]) -> None:
    """Refuse frozen weights in 8 bits where they cannot be computed with.

    Args:
        run: the configuration.
        capability: CUDA's compute capability of the device; (0, 0): it is another one.

    Raises:
        ConfigError: the compute type is not bfloat16.
        DeviceNotFound: the device does not multiply such numbers.
    """
    if run.config.general.frozen_dtype is None:
        return
    if run.config.training.mixed_precision != "bf16":
        precision = run.config.training.mixed_precision
        raise ConfigError([f"General.frozen_dtype: fp8 needs Training.mixed_precision: bf16, not {precision}"])
    if capability < CAPABILITY:
        what = f"this one has {capability[0]}.{capability[1]}" if capability != (0, 0) else "this is another device"
        raise DeviceNotFound(f"host {socket.gethostname()}: General.frozen_dtype: fp8 needs an NVIDIA GPU of compute capability "
                             f"{CAPABILITY[0]}.{CAPABILITY[1]} or higher (Ada, Hopper or later), and {what}: leave frozen_dtype "
                             "out, or let the workers run on nodes with such GPUs")  # fmt: skip
