"""Let rank 0 alone read a model that FSDP shards, and send it layer by layer: no other rank ever holds more than a layer of it.

The other ranks make the model on the device `meta`, which takes no memory. Before a layer is sharded, rank 0 sends what is
in it: parameters, buffers, and tensors that a module keeps as plain attributes.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from finetune_trainer.modeling import load
from finetune_trainer.runtime import distributed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)


def load_on_rank0(run: Run, worker: Worker, dtype: torch.dtype) -> Any:
    """Load the model on rank 0; the other ranks get one without weights, for `send_from_rank0`. A collective.

    Raises: as `load.load_model`, on every rank.
    """
    loaded: list[Any] = []
    distributed.broadcast_from_rank0(worker, lambda: loaded.append(load.load_model(run, dtype)))
    model = loaded[0] if loaded else load.make_empty(run, dtype)
    described = distributed.all_gather(worker, lambda: _describe(model))
    if described[worker.rank] != described[0]:
        log.warning("the model's files give other tensors than its code: this rank reads them too")
        model = load.load_model(run, dtype)
    return model


def send_from_rank0(part: nn.Module) -> None:
    """Give a part of the model the tensors that it has on rank 0, apart from those that are sharded already. A collective."""
    sent: dict[int, torch.Tensor] = {}
    for module, name, tensor in list(_tensors(part)):
        if id(tensor) not in sent:
            sent[id(tensor)] = _send(tensor)
        if sent[id(tensor)] is not tensor:
            setattr(module, name, sent[id(tensor)])


def _send(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with the values of rank 0."""
    values = tensor.detach()
    values = torch.empty_like(values, device="cpu") if values.is_meta else values.contiguous()
    dist.broadcast(values, src=0)
    if not tensor.is_meta:
        return tensor
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values


def _tensors(part: nn.Module) -> Iterator[tuple[nn.Module, str, torch.Tensor]]:
    """All tensors of a part that are not sharded, each with the module that holds it and its name there."""
    for module in part.modules():
        own = {key: value for key, value in vars(module).items() if isinstance(value, torch.Tensor)}
        for kept in (module._parameters, module._buffers, dict(sorted(own.items()))):  # noqa: SLF001 - with shared ones
            for name, tensor in kept.items():
                if tensor is not None and not hasattr(tensor, "full_tensor"):
                    yield module, name, tensor


def _describe(model: nn.Module) -> list[tuple[str, str, tuple[int, ...], bool]]:
    """Names, types and shapes of all tensors, in the order in which they are sent."""
    return [(name, str(tensor.dtype), tuple(tensor.shape), tensor.requires_grad) for _, name, tensor in _tensors(model)]
