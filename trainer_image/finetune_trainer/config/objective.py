"""What a run learns from: only supervised finetuning is supported. Files for preference training are refused in words.

llm-on-ray has had files for DPO, PPO and reward models; without their keys, such a file would be trained as if it were
supervised finetuning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, WithJsonSchema

from finetune_trainer.config.section import cel, lower

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pydantic import JsonValue

SUPERVISED = ("", "default", "none", "sft")
"""Values of a key for the objective that mean supervised finetuning, in lower case."""

OBJECTIVE_MESSAGE = (
    "only supervised finetuning is supported: no preference training (DPO), no RLHF (PPO) and no reward model. "
    "Leave the keys of those out to finetune on rows of instruction and response"
)

PREFERENCE_SECTIONS = frozenset({"dpo", "rlhf", "ppo", "rm", "reward", "orpo", "kto", "grpo"})
"""Sections of preference training, in lower case."""

PREFERENCE_KEYS = frozenset({"rm_name", "rm_pretrain", "reward_model", "ref_model", "kl_coeff", "experience_batch_size"})
"""Keys of preference training that are in no section of ours. llm-on-ray's rlhf/ppo.conf has most of them."""


def _supervised(value: Any) -> Any:
    if value is not None and lower(value) not in SUPERVISED:
        raise ValueError(OBJECTIVE_MESSAGE)
    return value


def _no(value: Any) -> Any:
    if value not in (None, False, "false", "False", "no", "No"):
        raise ValueError(OBJECTIVE_MESSAGE)
    return value


def _absent(value: Any) -> Any:
    if value is not None:
        raise ValueError(OBJECTIVE_MESSAGE)
    return value


Objective = Annotated[str, BeforeValidator(_supervised), cel(f"self.lowerAscii() in {list(SUPERVISED)}", OBJECTIVE_MESSAGE)]
"""A key that names the objective."""

Never = Annotated[
    bool,
    BeforeValidator(_no),
    WithJsonSchema({"type": "boolean", "x-kubernetes-validations": [{"rule": "!self", "message": OBJECTIVE_MESSAGE}]}),
]
"""A switch for another objective, which may only be off."""

Absent = Annotated[float, BeforeValidator(_absent), WithJsonSchema({"type": "number", "minimum": -1000, "maximum": 1000})]
"""A number that only another objective has; `ABSENT_RULE` of its section refuses it in the API."""


def absent_rule(key: str) -> dict[str, JsonValue]:
    """The rule of a section for a key of the type `Absent`."""
    return {"rule": f"!has(self.{key})", "message": OBJECTIVE_MESSAGE}


def other_objectives(raw: Mapping[str, Any]) -> Iterator[str]:
    """One line for each section and key of preference training that the configuration does not have."""
    for section, keys in raw.items():
        if str(section).lower() in PREFERENCE_SECTIONS:
            yield f"{section}: {OBJECTIVE_MESSAGE}"
        elif isinstance(keys, dict):
            yield from (f"{section}.{key}: {OBJECTIVE_MESSAGE}" for key in keys if str(key).lower() in PREFERENCE_KEYS)
