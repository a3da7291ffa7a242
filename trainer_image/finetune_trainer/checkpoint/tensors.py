"""Write the state of an engine to files, and read it back, so that the run continues as if it had never ended.

The state is the trainable weights and the optimizer's tensors, as each rank holds them: a rank of FSDP has its shards
only. The number of steps gives the position in the data, and each step seeds its randomness: neither is stored.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.checkpoint import marker
from finetune_trainer.files import sync_and_describe
from finetune_trainer.tracking.measurements import RunningLoss

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.files import Entry
    from finetune_trainer.runtime.engine import Engine


def save_tensors(engine: Engine, path: Path) -> Entry:
    """Write this rank's tensors; return size and digest of the file.

    Raises:
        OSError, safetensors.SafetensorError: the volume is full or not writable.
    """
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in _tensors(engine).items()}, path)
    return sync_and_describe(path)


def save_rest(engine: Engine, running_loss: RunningLoss, path: Path) -> Entry:
    """Write everything that is not a tensor; return size and digest of the file.

    Raises:
        OSError: the volume is full or not writable.
    """
    groups = [{key: value for key, value in group.items() if key != "params"} for group in engine.optimizer.param_groups]
    rest = {
        "optimizer": type(engine.optimizer).__name__,
        "groups": groups,
        "schedule": engine.schedule.state_dict(),
        "scaler": engine.scaler.state_dict(),
        "sums": asdict(running_loss),
    }
    path.write_text(json.dumps(rest, indent=1) + "\n", encoding="utf-8")
    return sync_and_describe(path)


def read_tensors(engine: Engine, path: Path, optimizer: str) -> dict[str, torch.Tensor]:
    """Read this rank's tensors, and check that they fit the engine.

    Args:
        engine: as it was built; its optimizer gets tensors without values.
        path: the file.
        optimizer: name of the optimizer whose tensors the file has; they are ignored unless the engine has the same one.

    Raises:
        Unusable: the file has other weights than the model.
    """
    from safetensors.torch import load_file

    saved = load_file(path)
    if optimizer == type(engine.optimizer).__name__:
        make_optimizer_state(engine)
    else:
        saved = {name: tensor for name, tensor in saved.items() if name.startswith("weight:")}
    there = {name: tensor.shape for name, tensor in _tensors(engine).items()}
    found = {name: tensor.shape for name, tensor in saved.items()}
    if found != there:
        engine.optimizer.state.clear()
        differing = min(name for name in there.keys() | found.keys() if there.get(name) != found.get(name))
        raise marker.Unusable(f"its weights are not those that learn here; the first that differs is {differing}")
    return saved


def put_tensors(engine: Engine, saved: dict[str, torch.Tensor]) -> None:
    """Copy the tensors that `read_tensors` has returned into the engine."""
    there = _tensors(engine)
    with torch.no_grad():
        for name, tensor in saved.items():
            there[name].copy_(tensor)


def load_rest(engine: Engine, rest: dict[str, Any]) -> RunningLoss:
    """Restore what is not a tensor; return the running loss."""
    for group, saved in zip(engine.optimizer.param_groups, rest["groups"], strict=True):
        group.update(saved)
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


def _tensors(engine: Engine) -> dict[str, torch.Tensor]:
    """The trainable weights and the optimizer's tensors of this rank, by name."""
    found: dict[str, torch.Tensor] = {}
    for name, weight in engine.model.named_parameters():
        if not weight.requires_grad:
            continue
        found[f"weight:{name}"] = _local(weight)
        for key, value in engine.optimizer.state.get(weight, {}).items():
            if value is not None:
                found[f"optimizer:{name}:{key}"] = _local(value)
    return found


def _local(tensor: Any) -> torch.Tensor:
    """The shard of a distributed tensor that this rank holds; any other tensor itself."""
    local: torch.Tensor = (tensor.to_local() if hasattr(tensor, "to_local") else tensor).detach()
    return local
