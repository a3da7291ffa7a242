"""Data-parallel training: DDP and FSDP2."""

from __future__ import annotations

import inspect
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_trainer.errors import ModelInvalid
from finetune_trainer.modeling import families
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.runtime.one_reader import send_from_rank0

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextlib import AbstractContextManager

    from finetune_trainer.runtime.distributed import Worker

GATHERING_ROOM = 1.5
"""Free memory that gathering a whole model takes, relative to its size: activations and the cache of keys and values, too."""

WORD = 8
"""Bytes of a whole number in a checksum."""


def parallelize(module: nn.Module, worker: Worker, strategy: str, dtype: torch.dtype) -> nn.Module:
    """Move the module that computes the loss to its device, and wrap it so that gradients are averaged over the ranks.

    A collective.
    """
    if worker.size == 1:
        # There is nothing to average or to shard, and the wrappers cost time and memory.
        return module.to(worker.device)
    if strategy == "FSDP":
        # FSDP moves one layer after the other to the device: the whole model need not fit.
        return _shard(module, worker, dtype)
    module.to(worker.device)
    ids = None if worker.device.type == "cpu" else [worker.device]
    send_what_differs(module, worker)
    ddp = nn.parallel.DistributedDataParallel
    renamed = "forward_sync_buffers" in inspect.signature(ddp).parameters  # in torch 2.13
    no_buffers: dict[str, Any] = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    return ddp(module, device_ids=ids, init_sync=False, gradient_as_bucket_view=True, find_unused_parameters=False, **no_buffers)


def send_what_differs(module: nn.Module, worker: Worker) -> None:
    """Give every rank the weights and buffers of rank 0. A collective.

    All ranks read the same files, and LoRA's first weights come from the seed: mostly there is nothing to be sent, where DDP
    itself would send the whole model.

    Raises:
        ModelInvalid: a rank has another model.
    """
    tensors = dict((*module.named_parameters(), *module.named_buffers()))
    shapes = [(name, str(tensor.dtype), tuple(tensor.shape)) for name, tensor in tensors.items()]
    sums = [checksum(tensor) for tensor in tensors.values()]
    everyone = distributed.all_gather(worker, lambda: (shapes, sums))
    other = next((rank for rank, (found, _) in enumerate(everyone) if found != everyone[0][0]), None)
    if other is not None:
        raise ModelInvalid(f"General.base_model: rank {other} has read another model under this name than rank 0; give all "
                           "workers the same files, or pin the revision of the hub")  # fmt: skip
    for place, tensor in enumerate(tensors.values()):
        if any(found[place] != everyone[0][1][place] for _, found in everyone):
            sent = tensor.detach()
            # Not all back ends send float8.
            distributed.broadcast_tensor(sent.view(torch.uint8) if sent.itemsize == 1 else sent)


def checksum(tensor: torch.Tensor) -> int:
    """The sum of a tensor's bits, taken as whole numbers: as fast as the memory is read."""
    raw = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    if raw.storage_offset() % WORD:
        raw = raw.clone()
    whole = raw.numel() // WORD * WORD
    return int(raw[:whole].view(torch.int64).sum()) + int(raw[whole:].sum())


def _shard(module: nn.Module, worker: Worker, dtype: torch.dtype) -> nn.Module:
    """Shard with FSDP2: each decoder layer by itself, and the rest as one group."""
    # The import takes seconds, so it is made here.
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method

    mesh = init_device_mesh(worker.device.type, (worker.size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
    for layer in families.decoder_layers(module.model):
        send_from_rank0(layer)
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    send_from_rank0(module)
    fully_shard(module, mesh=mesh, mp_policy=policy)
    for method in ("generate", "logits"):
        register_fsdp_forward_method(module, method)
    return module


def evaluation_mode(module: nn.Module) -> AbstractContextManager[None]:
    """Run forward passes without dropout and gradients; restore the module afterwards."""
    return without_gradients(module, training=False)


@contextmanager
def without_gradients(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Run forward passes without gradients, with or without dropout; restore the module afterwards."""
    module.train(training)
    with torch.no_grad():
        yield
    module.train()
    reshard: Any = getattr(module, "reshard", None)  # of FSDP2
    if reshard is not None:
        # Without a backward pass the outermost group stays gathered, and its parameters are other objects.
        reshard()


@contextmanager
def gathered_once(module: nn.Module, worker: Worker) -> Iterator[None]:
    """Keep each layer of a sharded module gathered after its first forward pass in the block, if all ranks have the memory.

    Otherwise each forward pass gathers all weights. A collective.
    """
    parts: list[Any] = [part for part in module.modules() if hasattr(part, "set_reshard_after_forward")]
    size = sum(weight.numel() * weight.element_size() for weight in module.parameters())
    share = devices.free_memory(worker.device) // (worker.local_size if worker.device.type == "cpu" else 1)
    lacking = distributed.sum_over_ranks(share < GATHERING_ROOM * size)[0] if parts else 1
    if lacking:
        yield
        return
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(part is not module, recurse=False)  # as torch has them by default
            part.reshard()


def is_sharded(module: nn.Module) -> bool:
    """Whether each rank holds only a part of the weights."""
    return any(hasattr(weight, "full_tensor") for weight in module.parameters())


def accumulating(module: nn.Module, *, last: bool, reduces_each: bool) -> AbstractContextManager[None]:
    """Reduce the gradients of a step in its last micro-batch; FSDP, which would hold them whole until then, in each on demand."""
    if isinstance(module, nn.parallel.DistributedDataParallel) and not last:
        context: AbstractContextManager[None] = module.no_sync()
        return context
    set_sync: Any = getattr(module, "set_requires_gradient_sync", None)  # of FSDP2
    if set_sync is not None:
        set_sync(last or reduces_each)
    return nullcontext()
