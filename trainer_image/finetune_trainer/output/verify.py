"""Compare the files of a result with the model that was trained, before they are declared a result.

The files are loaded as a user loads them, but read from the disk one layer after the other, so that this takes no memory
for a second model.
"""

from __future__ import annotations

import logging
import shutil
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.errors import ExportInvalid
from finetune_trainer.modeling import families

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.run import Run

_OFFLOADING = logging.getLogger("accelerate.big_modeling")

TOLERANCES = {torch.float32: 1e-3, torch.bfloat16: 5e-2, torch.float16: 5e-2}
"""Largest difference of the logits, relative to their size: rounding to the type of the files, and other orders of sums."""

OFFLOAD = ".offload"
"""Folder below that of the files for weights that the library has to convert."""


@dataclass(frozen=True)
class Reference:
    """Rows, and what the model in memory says about them."""

    rows: tuple[torch.Tensor, ...]
    """Each [1, T], int64."""
    logits: tuple[torch.Tensor, ...]
    """For each row the logits [P, V] of its last positions, float32, on the CPU."""


def verify_model(run: Run, folder: Path, reference: Reference, dtype: torch.dtype) -> None:
    """Refuse a full model whose files do not give the model that was trained.

    Raises:
        ExportInvalid: they do not.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    _OFFLOADING.setLevel(logging.ERROR)  # it warns that the model is on the disk, as is meant
    options: dict[str, Any] = {"trust_remote_code": run.config.general.config.trust_remote_code}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = AutoConfig.from_pretrained(folder, **options)
            options["attn_implementation"] = families.family_of(config.model_type).attention
            model, found = AutoModelForCausalLM.from_pretrained(
                folder,
                config=config,
                dtype=dtype,
                device_map={"": "disk"},
                offload_folder=folder / OFFLOAD,
                output_loading_info=True,
                **options,
            )
            lacks = sorted(found["missing_keys"])
            if lacks:
                raise ExportInvalid(f"{folder}: the exported files lack {', '.join(lacks[:3])}")
            _compare(folder, model.eval(), reference, dtype)
    finally:
        shutil.rmtree(folder / OFFLOAD, ignore_errors=True)


def verify_adapter(model: Any, weights: dict[str, Any] | None, folder: Path, reference: Reference, dtype: torch.dtype) -> None:
    """Refuse an adapter whose files do not give the model that was trained.

    Args:
        model: the model in memory.
        weights: the gathered weights of the adapter, if the model is sharded; then only they are compared.
        folder: the files.
        reference: what the model says.
        dtype: of the base model.

    Raises:
        ExportInvalid: they do not.
    """
    if weights is not None:
        _compare_tensors(folder, weights)
        return
    name = "exported"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_adapter(str(folder), name)
        model.set_adapter(name)
        training = model.training
        try:
            _compare(folder, model.eval(), reference, dtype)
        finally:
            model.set_adapter("default")
            model.delete_adapter(name)
            model.train(training)


def read_again(model: Any, reference: Reference, dtype: torch.dtype) -> Reference:
    """What another model says about the same rows."""
    logits: list[torch.Tensor] = []
    device = next(model.parameters()).device
    place = torch.device("cpu") if device.type == "meta" else device
    for row, known in zip(reference.rows, reference.logits, strict=True):
        with torch.no_grad(), torch.autocast(place.type, dtype=dtype, enabled=dtype != torch.float32):
            logits.append(model(input_ids=row.to(place), use_cache=False).logits[0, -len(known) :].float().cpu())
    return Reference(reference.rows, tuple(logits))


def _compare(folder: Path, model: Any, reference: Reference, dtype: torch.dtype) -> None:
    for logits, expected in zip(read_again(model, reference, dtype).logits, reference.logits, strict=True):
        difference = float((logits - expected).norm() / expected.norm().clamp(min=1e-12))
        if not difference <= TOLERANCES[dtype]:
            raise ExportInvalid(f"{folder}: the exported files give other answers than the model that was trained (their logits "
                                f"differ by {100 * difference:.2g} %): they are not declared a result")  # fmt: skip


def _compare_tensors(folder: Path, weights: dict[str, Any]) -> None:
    from safetensors import safe_open

    # Those of a frozen layer that is tied to another one are gathered, too.
    weights = {name: value for name, value in weights.items() if "lora_" in name}
    found = 0
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            stem, _, last = name.rpartition(".")
            trained = weights.get(f"{stem}.default.{last}", weights.get(f"{name}.default"))
            found += trained is not None and torch.equal(file.get_tensor(name), trained.cpu())
    if found != len(weights):
        raise ExportInvalid(f"{folder}: the exported adapter has {found} of the {len(weights)} tensors that were trained")
