"""Write the state of an engine to files, and read it back, so that the run continues as if it had never ended.

The state is the trainable weights and the optimizer's tensors, as each rank holds them: a rank of FSDP has its shards
only, and reads what it needs from the files of others where their number has changed. The number of steps gives the
position in the data, and each step seeds its randomness: neither is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.checkpoint import marker, shards
from finetune_trainer.tracking.measurements import RunningLoss

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from finetune_trainer.checkpoint.identity import Identity
    from finetune_trainer.runtime.distributed import Worker
    from finetune_trainer.runtime.engine import Engine

TYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
"""Names that the format of safetensors gives to types."""

IMPLEMENTATION = {"foreach", "fused", "capturable", "differentiable"}
"""Keys of an optimizer's groups that say how it computes, not what: those of this run hold, not those of a checkpoint."""

ALIGNMENT = 8
"""The header of a safetensors file is filled up with spaces to a multiple of this."""


def copy_to_host(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in host memory, which the steps that follow do not change."""
    return {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}


def safetensors(tensors: dict[str, torch.Tensor]) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file: https://huggingface.co/docs/safetensors#format.

    The library's own writer returns no digest, and copies all tensors of a GPU into host memory at once.
    """
    header, offset = {}, 0
    # The widest types come first, so that every tensor is aligned.
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, tensor in ordered:
        end = offset + tensor.nbytes
        header[name] = {"dtype": TYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    yield len(text).to_bytes(8, "little") + text
    for _, tensor in ordered:
        raw: Any = tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(raw)


def find_not_finite(engine: Engine) -> str | None:
    """Name of a tensor of this rank with a NaN or an infinite value; None: there is none."""
    return _not_finite(state_of(engine))


def _not_finite(tensors: dict[str, torch.Tensor]) -> str | None:
    return next((name for name, tensor in tensors.items() if not bool(tensor.isfinite().all())), None)


def rest_of(engine: Engine, running_loss: RunningLoss) -> bytes:
    """Everything that is not a tensor, as the content of a file."""
    groups = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    rest = {
        "optimizer": type(engine.optimizer).__name__,
        "groups": groups,
        "schedule": engine.schedule.state_dict(),
        "scaler": engine.scaler.state_dict(),
        "sums": asdict(running_loss),
    }
    return json.dumps(rest, indent=1).encode() + b"\n"


def read_tensors(engine: Engine, folder: Path, identity: Identity, optimizer: str) -> dict[str, torch.Tensor]:
    """Read what this rank holds of the tensors, and check that they fit the engine.

    Args:
        engine: as it was built; its optimizer gets tensors without values.
        folder: the checkpoint.
        identity: how it was written.
        optimizer: name of the optimizer whose tensors it has; they are ignored unless the engine has the same one.

    Raises:
        Unusable: it has other tensors than the engine, or one that is not finite.
    """
    same = optimizer == type(engine.optimizer).__name__
    if same:
        make_optimizer_state(engine)
    held, worker = _held(engine), engine.worker
    saved: dict[str, torch.Tensor | None] = {}
    with shards.Shards(folder, identity, worker.rank) as files:
        found = {name for name in files.names() if same or name.startswith("weight:")}
        for name in found & held.keys():
            saved[name] = files.read(name, held[name].shape, *_rows(held[name], worker))
    fitting = {name: tensor for name, tensor in saved.items() if tensor is not None}
    differing = (found | held.keys()) - fitting.keys()
    if differing:
        engine.optimizer.state.clear()
        raise marker.Unusable(f"its weights are not those that learn here; the first that differs is {min(differing)}")
    broken = _not_finite(fitting)
    if broken is not None:
        raise marker.Unusable(f"its tensor {broken} is not finite")
    return fitting


def put_tensors(engine: Engine, saved: dict[str, torch.Tensor]) -> None:
    """Copy the tensors that `read_tensors` has returned into the engine."""
    there = state_of(engine)
    with torch.no_grad():
        for name, tensor in saved.items():
            there[name].copy_(tensor)
    if engine.masters is not None:
        engine.masters.publish()
    for name, weight in engine.learning.items():
        state = engine.optimizer.state.get(weight, {})
        for key, value in state.items():
            if not isinstance(value, torch.Tensor) and (number := saved.get(f"optimizer:{name}:{key}")) is not None:
                state[key] = type(value)(number.item())


def load_rest(engine: Engine, rest: dict[str, Any]) -> RunningLoss:
    """Restore what is not a tensor; return the running loss."""
    for group, saved in zip(engine.optimizer.param_groups, rest["groups"], strict=True):
        group.update({key: value for key, value in saved.items() if key not in IMPLEMENTATION})
    engine.schedule.load_state_dict(rest["schedule"])
    engine.scaler.load_state_dict(rest["scaler"])
    return RunningLoss(**rest["sums"])


def make_optimizer_state(engine: Engine) -> None:
    """Make the optimizer's tensors, of the right types and sharded as the weights, by a step that changes no weight."""
    optimizer = engine.optimizer
    rates = [group["lr"] for group in optimizer.param_groups]
    for weight in engine.weights:
        weight.grad = torch.zeros_like(weight)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """The trainable weights and the optimizer's tensors, by name, as this rank holds them."""
    return {name: _local(tensor) for name, tensor in _held(engine).items()}


def _held(engine: Engine) -> dict[str, torch.Tensor]:
    """The same, with sharded tensors as what they are: their shape is that of the whole."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in engine.learning.items():
        found[f"weight:{name}"] = weight
        for key, value in engine.optimizer.state.get(weight, {}).items():
            if value is not None:
                # Some optimizers count their steps in a number.
                found[f"optimizer:{name}:{key}"] = value if isinstance(value, torch.Tensor) else torch.tensor(value)
    return found


def _rows(tensor: torch.Tensor, worker: Worker) -> tuple[int, int]:
    """The rows of a tensor that this rank holds: the first one, and the one after the last."""
    length = tensor.shape[0] if tensor.dim() else 0
    return shards.rows_of(length, worker.rank, worker.size) if hasattr(tensor, "to_local") else (0, length)


def _local(tensor: Any) -> torch.Tensor:
    """The shard of a distributed tensor that this rank holds; any other tensor itself."""
    local: torch.Tensor = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
    return local
