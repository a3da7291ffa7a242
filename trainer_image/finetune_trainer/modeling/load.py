"""Load the tokenizer and the base model."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch
from transformers.utils import logging as hub_logging

from finetune_trainer.errors import TrainerError
from finetune_trainer.modeling import families, load_errors
from finetune_trainer.modeling.adapters import add_adapters

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run

log = logging.getLogger(__name__)


def load_tokenizer(run: Run) -> Any:
    """Load the tokenizer.

    Raises:
        ModelNotFound: nothing exists under this name or in this folder.
        ModelAccessDenied: the hub does not let this user download it.
        ModelInvalid: a file of it is broken.
    """
    from transformers import AutoTokenizer

    hub_logging.set_verbosity_error()
    load_errors.check_source(run, "model", run.model_source)
    load_errors.check_source(run, "tokenizer", run.tokenizer_source)
    try:
        return AutoTokenizer.from_pretrained(run.tokenizer_source, **_hub_options(run, run.tokenizer_source))
    except Exception as error:  # transformers raises whatever it stumbles over in a broken file
        raise load_errors.refuse(run, "tokenizer", run.tokenizer_source, error) from error


def load_model(run: Run, dtype: torch.dtype, *, empty: bool = False) -> Any:
    """Load the base model into host memory, with LoRA adapters and gradient checkpointing as configured, ready to train.

    Args:
        run: what to load.
        dtype: compute type. Frozen weights are held in it; trainable weights are held in float32.
        empty: leave out the weights of the base model; see `make_empty`.

    Raises:
        ModelNotFound: nothing exists under this name or in this folder.
        ModelAccessDenied: the hub does not let this user download it.
        ModelInvalid: a file of it is broken.
        ConfigError: LoRA's target modules are not in the model.
    """
    general = run.config.general
    model = load_base(run, torch.float32 if general.lora_config is None else dtype, empty=empty)
    model.config.use_cache = False
    if general.lora_config is not None:
        model = add_adapters(model, run, dtype)
    if general.enable_gradient_checkpointing is True:
        recompute_activations(model)
    return model.train()


def recompute_activations(model: Any) -> None:
    """Let the layers of a model recompute their activations in the backward pass instead of keeping them."""
    # transformers 5.2x renamed it. Without re-entrance, frozen embeddings need no gradients.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def make_empty(run: Run, dtype: torch.dtype) -> Any:
    """Make the model of `load_model` on the device `meta`, without weights and memory; only its config.json is read.

    Raises: as `load_model`.
    """
    with torch.device("meta"):
        return load_model(run, dtype, empty=True)


def load_base(run: Run, dtype: torch.dtype, *, empty: bool = False) -> Any:
    """Load the base model as it is, in host memory; empty: without its weights.

    Raises:
        ModelNotFound: nothing exists under this name or in this folder.
        ModelAccessDenied: the hub does not let this user download it.
        ModelInvalid: a file of it is broken.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    hub_logging.disable_progress_bar()
    options = _hub_options(run, run.model_source)
    load_errors.check_source(run, "model", run.model_source)
    try:
        config = AutoConfig.from_pretrained(run.model_source, **options)
        load_errors.check_causal(run, config)
        attention = families.family_of(config.model_type).attention
        if empty:
            trust = run.config.general.config.trust_remote_code
            made = AutoModelForCausalLM.from_config
            return made(config, dtype=dtype, attn_implementation=attention, trust_remote_code=trust)
        model, found = AutoModelForCausalLM.from_pretrained(
            run.model_source, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True, **options
        )
    except TrainerError:
        raise
    except Exception as error:  # transformers raises whatever it stumbles over in a broken file
        raise load_errors.refuse(run, "model", run.model_source, error) from error
    load_errors.check_complete(run, found["missing_keys"])
    return model


def _hub_options(run: Run, source: str) -> dict[str, Any]:
    """Options for loading. The revision is that of the base model and does not apply to a separate tokenizer."""
    options: dict[str, Any] = {"trust_remote_code": run.config.general.config.trust_remote_code}
    return options | ({"revision": run.model_revision} if run.model_revision and source == run.model_source else {})
