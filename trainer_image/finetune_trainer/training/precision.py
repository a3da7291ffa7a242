"""Choose the type that a worker computes in."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import torch

from finetune_trainer.runtime import cpu, distributed

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)


def choose_dtype(run: Run, worker: Worker) -> cpu.Compute:
    """Choose the compute type, and set up the CPU's threads and instruction set before its first use."""
    training = run.config.training
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
