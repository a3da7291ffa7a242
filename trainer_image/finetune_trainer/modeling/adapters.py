"""Put LoRA adapters on a model."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from finetune_trainer.errors import ConfigError
from finetune_trainer.modeling import families, load_errors

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def add_adapters(model: Any, run: Run, dtype: torch.dtype) -> Any:
    """Put LoRA adapters on the model; only they are trained.

    Args:
        model: the base model.
        run: the configuration.
        dtype: compute type.

    Raises:
        ConfigError: target modules are missing, or PEFT has no default for this family.
    """
    import peft

    lora = run.config.general.lora_config
    if lora is None:
        return model
    missing = set(lora.target_modules or ()) - set(_adaptable(model, every_part=True))
    if missing:
        there = ", ".join(_adaptable(model))
        lacks = ", ".join(sorted(missing))
        raise ConfigError([f"General.lora_config.target_modules: the model has no {lacks}; it has {there}"])
    targets = lora.target_modules or families.family_of(model.config.model_type).lora_targets
    config = peft.LoraConfig(
        task_type=lora.task_type,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        target_modules=list(targets) if targets else None,
    )
    try:
        with warnings.catch_warnings():
            # PEFT warns about settings that it corrects itself and about names that transformers has changed.
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        there = ", ".join(_adaptable(model))
        why = load_errors.first_sentence(error)
        raise ConfigError([f"General.lora_config.target_modules: {why}; the model has {there}"]) from None
    if dtype != torch.float32:
        _compute_without_casts(adapted)
    return adapted


def _compute_without_casts(adapted: nn.Module) -> None:
    """Let the adapters take their inputs as they are: autocast, or FSDP, brings weights and inputs to the compute type.

    PEFT would copy each input to float32, the type of the adapters, and autocast would copy it back.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    for part in adapted.modules():
        if isinstance(part, BaseTunerLayer):
            part.cast_input_dtype_enabled = False


def _adaptable(model: nn.Module, *, every_part: bool = False) -> list[str]:
    """Names of the layers that LoRA can adapt: their last parts, or all suffixes of their dotted names."""
    kinds = (nn.Linear, nn.Embedding, transformers.pytorch_utils.Conv1D)
    names = [name for name, part in model.named_modules() if isinstance(part, kinds)]
    if not every_part:
        return sorted({name.rpartition(".")[2] for name in names})
    return [".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))]
