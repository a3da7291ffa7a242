"""Load the tokenizer and the base model, and put LoRA adapters on it."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn
from transformers.utils import logging as hub_logging

from finetune_trainer.errors import ConfigError
from finetune_trainer.modeling import families, load_errors

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run

log = logging.getLogger(__name__)


def load_tokenizer(run: Run) -> Any:
    """Load the tokenizer.

    Raises:
        ModelNotFound: there is none under this name or in this folder.
        ModelAccessDenied: the hub does not give it to this user.
        ModelInvalid: a file of it is broken.
    """
    from transformers import AutoTokenizer

    hub_logging.set_verbosity_error()
    try:
        return AutoTokenizer.from_pretrained(run.tokenizer_source, **_hub_options(run, run.tokenizer_source))
    except load_errors.ERRORS as error:
        raise load_errors.refuse(run, "tokenizer", run.tokenizer_source, error) from error


def load_model(run: Run, dtype: torch.dtype) -> Any:
    """Load the base model into host memory, with LoRA adapters and gradient checkpointing as configured, ready to train.

    Args:
        run: what to load.
        dtype: compute type. Frozen weights are held in it; weights that learn are held in float32.

    Raises:
        ModelNotFound: there is none under this name or in this folder.
        ModelAccessDenied: the hub does not give it to this user.
        ModelInvalid: a file of it is broken.
        ConfigError: LoRA's target modules are not in the model.
    """
    general = run.config.general
    model = load_base(run, torch.float32 if general.lora_config is None else dtype)
    model.config.use_cache = False
    if general.lora_config is not None:
        model = add_adapters(model, run)
    if general.enable_gradient_checkpointing:
        # transformers 5.2x renamed it. Without re-entrance, frozen embeddings need no gradients of their own.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model.train()


def longest_input(model: Any) -> int | None:
    """Positions that the model can tell apart; None: no limit is known."""
    config = model.config
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit) if limit else None


def load_base(run: Run, dtype: torch.dtype) -> Any:
    """Load the base model as it is, in host memory.

    Raises:
        ModelNotFound: there is none under this name or in this folder.
        ModelAccessDenied: the hub does not give it to this user.
        ModelInvalid: a file of it is broken.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    hub_logging.disable_progress_bar()
    options = _hub_options(run, run.model_source)
    try:
        config = AutoConfig.from_pretrained(run.model_source, **options)
        attention = families.family_of(config.model_type).attention
        model, found = AutoModelForCausalLM.from_pretrained(
            run.model_source, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True, **options
        )
    except load_errors.ERRORS as error:
        raise load_errors.refuse(run, "model", run.model_source, error) from error
    load_errors.check_complete(run, found["missing_keys"])
    return model


def _hub_options(run: Run, source: str) -> dict[str, Any]:
    """The revision is the base model's: a tokenizer of its own has another history."""
    options: dict[str, Any] = {"trust_remote_code": run.config.general.config.trust_remote_code}
    return options | ({"revision": run.model_revision} if run.model_revision and source == run.model_source else {})


def add_adapters(model: Any, run: Run) -> Any:
    """Put LoRA adapters on the model; only they learn.

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
            # PEFT names settings that it corrects by itself, and calls what transformers renamed: nothing to act on.
            warnings.simplefilter("ignore")
            adapted = peft.get_peft_model(model, config)
    except ValueError as error:
        there = ", ".join(_adaptable(model))
        why = load_errors.first_sentence(error)
        raise ConfigError([f"General.lora_config.target_modules: {why}; the model has {there}"]) from None
    return adapted


def _adaptable(model: nn.Module, *, every_part: bool = False) -> list[str]:
    """Names of the layers that LoRA can adapt: their last parts, or every tail of their dotted names."""
    kinds = (nn.Linear, nn.Embedding, transformers.pytorch_utils.Conv1D)
    names = [name for name, part in model.named_modules() if isinstance(part, kinds)]
    if not every_part:
        return sorted({name.rpartition(".")[2] for name in names})
    return [".".join(parts[start:]) for parts in (name.split(".") for name in names) for start in range(len(parts))]
