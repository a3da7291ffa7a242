"""The table of model families: one row each. Read it before you add a family.

The first eight are the families of llm-on-ray; tests/trainer/test_families.py tests all features with each of them. The
others share their architecture with one of these.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from finetune_trainer import memory

if TYPE_CHECKING:
    from torch import nn

    from finetune_trainer.config.general import LoraConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Family:
    """One family, by config.model_type."""

    attention: Literal["sdpa", "eager"] | None = None
    """Implementation of attention; None: what transformers chooses."""
    lora_targets: tuple[str, ...] | None = None
    """Linear layers that LoRA adapts when the configuration names none; None: PEFT's choice, if it has one."""
    layers: str | None = None
    """Where the decoder layers are, which FSDP shards one by one; None: the longest list of modules."""
    plain_head: bool = False
    """Whether logits are the output layer on the last hidden state and nothing else: no scaling, no soft cap."""
    limit: str | None = None
    """Key of the configuration with the most tokens of a row; None: the model has no limit."""
    packs_rows: bool = False
    """Whether rows may be packed without padding: the model accepts our attention and explicit positions, or it is in
    `packed_families`."""


QUERY_VALUE = ("q_proj", "v_proj")

POSITIONS = "max_position_embeddings"

FAMILIES: dict[str, Family] = {
    # model_type          attention lora_targets          layers                  plain_head, limit, packs_rows
    "llama":      Family("sdpa",  QUERY_VALUE,          "model.layers",         True, POSITIONS,      True),
    "mistral":    Family("sdpa",  QUERY_VALUE,          "model.layers",         True, POSITIONS,      True),
    "gpt_neox":   Family("sdpa",  ("query_key_value",), "gpt_neox.layers",      True, POSITIONS,      True),
    "gptj":       Family("eager", QUERY_VALUE,          "transformer.h",        True, "n_positions",  True),
    "bloom":      Family("eager", ("query_key_value",), "transformer.h",        True, None,           True),
    "opt":        Family("sdpa",  QUERY_VALUE,          "model.decoder.layers", True, POSITIONS,      True),
    "mpt":        Family("eager", ("Wqkv",),            "transformer.blocks",   True, "max_seq_len",  True),
    "gpt2":       Family("sdpa",  ("c_attn",),          "transformer.h",        True, "n_positions",  True),
    "gemma":      Family("sdpa",  QUERY_VALUE,          "model.layers",         True, POSITIONS,      True),
    "phi":        Family("sdpa",  (*QUERY_VALUE, "fc1", "fc2"), "model.layers", True, POSITIONS,      True),
    "qwen2":      Family("sdpa",  QUERY_VALUE,          "model.layers",         True, POSITIONS,      True),
    "qwen3":      Family("sdpa",  QUERY_VALUE,          "model.layers",         True, POSITIONS,      True),
}  # fmt: skip

UNKNOWN = Family()
"""Safe for any causal language model: padding, and the whole forward pass."""

LIMITS = (POSITIONS, "n_positions", "max_seq_len", "max_sequence_length", "seq_length", "n_ctx")
"""Keys that name the limit of a model without a row."""


def family_of(model_type: str) -> Family:
    """The row of a family; the safe defaults for a family without a row."""
    return FAMILIES.get(model_type, UNKNOWN)


def adapter_of(lora: LoraConfig | None, model_type: str) -> memory.Adapter | None:
    """The adapter of a configuration, as the prediction of memory and time takes it; None: all weights are trained."""
    if lora is None:
        return None
    targets = lora.target_modules or family_of(model_type).lora_targets or ()
    return memory.Adapter(lora.r, frozenset(name.rpartition(".")[2] for name in targets), lora.lora_dropout > 0)


def warn_if_unknown(model_type: str) -> None:
    """Warn about the features that a model without a row lacks."""
    if model_type not in FAMILIES:
        known = ", ".join(FAMILIES)
        log.warning("the trainer is not tested with models of type %s (but with %s): rows are padded, and the output "
                    "layer runs on prompts too", model_type, known)  # fmt: skip


def unwrapped(model: Any) -> Any:
    """The transformers model inside a PEFT model; its layers keep their adapters."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: Any) -> nn.ModuleList:
    """The stack of equal blocks of a model, adapted or not."""
    from torch import nn  # `estimate` reads the table where there is no torch

    layers: nn.ModuleList
    model = unwrapped(model)
    path = family_of(model.config.model_type).layers
    if path is not None:
        layers = model.get_submodule(path)
        return layers
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=nn.ModuleList())


def has_plain_head(model: Any) -> bool:
    """Whether the loss may run the output layer on some positions only."""
    from torch import nn

    model = unwrapped(model)
    known = family_of(model.config.model_type).plain_head and model.base_model is not model
    return known and type(model.get_output_embeddings()) is nn.Linear


def longest_input(model: Any) -> int | None:
    """The most tokens that a row may have; None: there is no limit, or it is unknown."""
    config = unwrapped(model).config.get_text_config()
    known = FAMILIES.get(config.model_type)
    keys = LIMITS if known is None else filter(None, (known.limit,))
    return next((int(limit) for key in keys if (limit := getattr(config, key, None))), None)


def takes_positions(model: Any) -> bool:
    """Whether the model takes the positions of the tokens as input; models with ALiBi do not."""
    return "position_ids" in inspect.signature(unwrapped(model).forward).parameters
