"""The process group of a run: its workers, and the collectives that the loop needs.

Without Ray there is one worker and no process group: every collective is the identity.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist

from finetune_trainer.config.run import RESTARTS
from finetune_trainer.runtime import devices
from finetune_trainer.tracking.progress import World

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.config.training import Training

Made = TypeVar("Made")

GROUP_TIMEOUT = timedelta(minutes=30)
"""How long a collective waits for the slowest rank. Loading a large model from a network volume takes minutes."""

LONG_TIMEOUT = timedelta(days=7)
"""How long ranks wait for work that one rank does alone, such as tokenising, writing a checkpoint, or the export. Ray ends
them if that rank is lost."""


@dataclass(frozen=True)
class Worker:
    """One process of the group."""

    device: torch.device
    rank: int = 0
    size: int = 1
    local_size: int = 1
    """Workers on this host."""
    local_rank: int = 0
    """Which of them this is."""
    backend: str = ""
    """Back end of the process group, as torch.distributed takes it; empty: there is no group."""
    restarts: int = 0
    """How many groups of workers of this attempt have failed before this one."""
    long_timeout_group: dist.ProcessGroup | None = None
    """A group of the same ranks for work that takes some ranks longer than others; None: the default group is used."""

    @property
    def is_rank0(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0


def single_process(training: Training) -> Worker:
    """The only worker, in this process and without a process group.

    Raises:
        DeviceNotFound: the asked kind of device is missing.
    """
    device = devices.find_device(training.device)
    devices.select_device(device)
    return Worker(device)


def init_process_group(training: Training) -> Worker:
    """Join the process group of the Ray Train worker that this process is.

    Raises:
        DeviceNotFound: the asked kind of device is missing.
    """
    import ray
    from ray import train

    device = devices.find_device(training.device, [str(gpu) for gpu in ray.get_gpu_ids()])
    devices.select_device(device)
    context = train.get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    backend = devices.group_backend(device.type)
    long_timeout_group = create_groups(backend, rank, size)
    return Worker(
        device,
        rank,
        size,
        local_size=context.get_local_world_size(),
        local_rank=context.get_local_rank(),
        backend=backend,
        restarts=int(os.environ.get(RESTARTS, "0")),
        long_timeout_group=long_timeout_group,
    )


def create_groups(backend: str, rank: int, size: int, init_method: str | None = None) -> dist.ProcessGroup:
    """Form the process group; return the `long_timeout_group` of a Worker.

    Args:
        backend: as torch.distributed takes it.
        rank: of this process.
        size: of the group.
        init_method: a URL where the ranks meet; None: environment variables name it.
    """
    dist.init_process_group(backend, init_method=init_method, rank=rank, world_size=size, timeout=GROUP_TIMEOUT)
    long_timeout_group: dist.ProcessGroup = dist.new_group(backend="gloo", timeout=LONG_TIMEOUT)
    return long_timeout_group


def with_own_group(worker: Worker) -> Worker:
    """The same worker for another thread: its collectives and those of the steps must not meet. A collective."""
    if not dist.is_initialized():
        return worker
    return replace(worker, long_timeout_group=dist.new_group(backend="gloo", timeout=LONG_TIMEOUT))


def destroy_process_group() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def describe(worker: Worker, strategy: Any, dtype: str) -> World:
    """Gather the hosts and devices of all ranks. A collective."""
    everyone = all_gather(worker, lambda: (socket.gethostname(), str(worker.device)))
    backend = worker.backend.rpartition(":")[2]
    hosts, names = zip(*everyone, strict=True)
    return World(size=worker.size, hosts=hosts, devices=names, backend=backend, strategy=strategy, dtype=dtype)


def broadcast_from_rank0(worker: Worker, make: Callable[[], Made]) -> Made:
    """Let rank 0 make a value, and broadcast it. Every rank raises an error of rank 0. A collective."""
    if not dist.is_initialized():
        return make()
    box: list[Any] = [None, None]
    if worker.is_rank0:
        try:
            box[0] = make()
        except Exception as error:  # noqa: BLE001 - after any error, the other ranks must not wait for a value
            box[1] = error
    dist.broadcast_object_list(box, src=0, group=worker.long_timeout_group)
    if box[1] is not None:
        raise box[1]
    value: Made = box[0]
    return value


def all_gather(worker: Worker, make: Callable[[], Made]) -> list[Made]:
    """Let each rank make a value, and gather all values, by rank. Every rank raises an error of any rank. A collective.

    The ranks wait for the slowest one as long as it takes: it may be writing a checkpoint to a slow volume.
    """
    mine: tuple[Any, Exception | None]
    try:
        mine = (make(), None)
    except Exception as error:  # noqa: BLE001 - as above
        mine = (None, error)
    everyone: list[Any] = [mine]
    if dist.is_initialized():
        everyone = [None] * worker.size
        dist.all_gather_object(everyone, mine, group=worker.long_timeout_group)
    failure = next((raised for _, raised in everyone if raised is not None), None)
    if failure is not None:
        raise failure
    return [value for value, _ in everyone]


def sum_over_ranks(*values: float) -> list[float]:
    """Sum numbers over all ranks, each by itself. A collective."""
    if not dist.is_initialized():
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(total)
    summed: list[float] = total.tolist()
    return summed


def broadcast_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Broadcast a tensor of rank 0 to all ranks. A collective."""
    if dist.is_initialized():
        dist.broadcast(tensor, src=0)
    return tensor
