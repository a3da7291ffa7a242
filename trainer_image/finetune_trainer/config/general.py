"""The section General of the configuration: the base model, the output, and LoRA."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, ConfigDict, Field, JsonValue, WithJsonSchema, model_validator

from finetune_trainer.config.objective import Objective
from finetune_trainer.config.section import Section, choice, lower, yaml_no

CREDENTIAL_MESSAGE = (
    "a token does not belong here: put it into a Secret that spec.model.tokenSecretRef of the FinetuneJob names, "
    "or locally into the environment variable HF_TOKEN"
)


def _no_literal_token(value: Any) -> Any:
    """Nothing: `false`, as transformers once took it, says that there is no token."""
    if value not in (None, "", False):
        raise ValueError(CREDENTIAL_MESSAGE)
    return None


_NO_TOKEN = Annotated[
    str | None,
    BeforeValidator(_no_literal_token),
    WithJsonSchema(
        {
            "type": "string",
            "nullable": True,
            "maxLength": 1024,
            "x-kubernetes-validations": [{"rule": "size(self) == 0", "message": CREDENTIAL_MESSAGE}],
        }
    ),
]
"""Where llm-on-ray takes a token for the hub."""


class HubConfig(Section):
    """How the base model is loaded."""

    trust_remote_code: bool = False
    """Run Python code that comes with the model. Off unless the administrator allows it."""
    use_auth_token: _NO_TOKEN = None
    """Only null: a token belongs in a Secret (spec.model.tokenSecretRef of the FinetuneJob) or in HF_TOKEN."""
    token: _NO_TOKEN = None
    """Only null, as use_auth_token, whose later name it is."""


class LoraConfig(Section):
    """Low-rank adaptation (PEFT). Leave out for full finetuning."""

    task_type: Literal["CAUSAL_LM"] = "CAUSAL_LM"
    """The task of the adapter: CAUSAL_LM."""
    r: Annotated[int, Field(ge=1, le=4096)] = 8
    """Rank of the update matrices."""
    lora_alpha: Annotated[int, Field(ge=1, le=65536)] = 32
    """Scale of the update: it is multiplied by lora_alpha / r."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout probability of the adapter's input, from 0 up to, not including, 1."""
    target_modules: (
        Annotated[list[Annotated[str, Field(min_length=1, max_length=128)]], Field(min_length=1, max_length=64)] | None
    ) = None
    """Names of the linear layers to adapt. Default: PEFT's choice for the model's family."""


FROZEN_NEEDS_LORA = "frozen_dtype needs General.lora_config"

GENERAL_RULES: list[JsonValue] = [
    {"rule": "!has(self.frozen_dtype) || has(self.lora_config)", "message": FROZEN_NEEDS_LORA},
]
"""Rules between the keys of General for the API server; `General._something_is_frozen` checks the same in Python."""


class General(Section):
    """The base model, the output, and LoRA."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": GENERAL_RULES})

    base_model: Annotated[str, Field(min_length=1, max_length=256)]
    """Hub name of the base model or a folder. In a FinetuneJob with model.persistentVolumeClaim the claim's folder is
    used, and this is only the name that the result carries."""
    tokenizer_name: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """Hub name or folder of the tokenizer. Default: that of the base model."""
    output_dir: Annotated[str, Field(min_length=1, max_length=256)] = "/tmp/llm-ray/output"  # noqa: S108 - the documented default of llm-on-ray
    """Folder of the result. In a FinetuneJob it is mapped to the job's own folder on the output claim."""
    report_to: Annotated[Literal["none", "tensorboard"], BeforeValidator(lower)] = "none"
    """Where the records of logs/metrics.jsonl are also written: none, or tensorboard (event files in logs/tensorboard)."""
    sample_prompts: Annotated[int, Field(ge=0, le=16)] = 3
    """How many prompts the model answers as it was before training and as it is after it, for the report: the first
    evaluation rows, or training rows if there are none. 0: none. An addition to llm-on-ray's keys."""
    resume_from_checkpoint: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    """A checkpoint of this trainer (a folder checkpoints/step-N) to resume from: exactly, if configuration and rows
    are the same, with any number of workers; else weights and optimizer only. A run resumes from its own checkpoints by
    itself."""
    save_strategy: Annotated[
        Literal["no", "epoch", "steps"],
        BeforeValidator(yaml_no),
        choice("no", "epoch", "steps", False, type_=None),
    ] = "no"
    """When to write checkpoints: no, epoch (at the end of each) or steps (every 100); epoch and steps also keep them
    beside the finished result."""
    config: HubConfig = HubConfig()
    """How the base model is loaded."""
    lora_config: LoraConfig | None = None
    """Low-rank adaptation; null or absent means full finetuning."""
    frozen_dtype: Annotated[Literal["fp8"], choice("fp8")] | None = None
    """Type of LoRA's frozen linear layers. fp8: faster on NVIDIA GPUs of capability 8.9 or higher, and some per cent less exact.
    It needs mixed_precision bf16. Merging takes the base model's own weights. An addition to llm-on-ray's keys. Default: that
    of mixed_precision."""
    merge_adapter: bool = False
    """Also write the base model with the adapter merged into it, below output_dir in the folder merged. No effect without
    lora_config."""
    enable_gradient_checkpointing: Annotated[
        Literal["auto", True, False], BeforeValidator(lower), choice("auto", True, False, type_=None)
    ] = "auto"
    """Recompute activations in the backward pass, which takes less memory and about a third more compute: true, false, or auto,
    on CUDA GPUs whose memory is predicted not to suffice without."""
    trainer_type: Objective | None = None
    """Only sft, default or null: other objectives, as dpo, are not supported."""
    gpt_base_model: bool | None = None
    """Obsolete, accepted and ignored."""
    gaudi_config_name: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""
    checkpoint_dir: Annotated[str, Field(max_length=256)] | None = None
    """Obsolete, accepted and ignored."""
    deltatuner_config: (
        Annotated[
            dict[str, Any],
            WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True, "maxProperties": 16}),
        ]
        | None
    ) = None
    """Obsolete, accepted and ignored."""

    @model_validator(mode="after")
    def _something_is_frozen(self) -> Self:
        if self.frozen_dtype is not None and self.lora_config is None:
            raise ValueError(FROZEN_NEEDS_LORA)
        return self
