"""The finetuning YAML of llm-on-ray: General, Dataset and Training.

One source for three readers: the command line, the Ray driver, and the operator's CRD (`make crds`). So nothing
heavy is imported here. Keys, defaults and spellings are the union of both schemas that llm-on-ray has had
(``CPU_DDP`` and ``DDP``, torch's and Hugging Face's optimizer names); a key that llm-on-ray requires without need
is optional here.
"""

from __future__ import annotations

from typing import Self

from pydantic import AliasChoices, ConfigDict, Field, JsonValue, model_validator

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.config.general import General
from finetune_trainer.config.section import Section
from finetune_trainer.config.training import Training

FROZEN_NEEDS_GPU = "General.frozen_dtype: fp8 needs Training.device GPU; leave frozen_dtype out on CPUs"

FROZEN_NEEDS_DDP = (
    "General.frozen_dtype: fp8 is not supported with Training.accelerate_mode FSDP; use GPU_DDP, or leave frozen_dtype out"
)

RULES: list[JsonValue] = [
    {
        "rule": "!has(self.General.frozen_dtype) || (has(self.Training) && has(self.Training.device) && "
        "self.Training.device.lowerAscii() == 'gpu')",
        "message": FROZEN_NEEDS_GPU,
    },
    {
        "rule": "!has(self.General.frozen_dtype) || !has(self.Training) || !has(self.Training.accelerate_mode) || "
        "!self.Training.accelerate_mode.upperAscii().endsWith('FSDP')",
        "message": FROZEN_NEEDS_DDP,
    },
]
"""Rules between the sections for the API server; `TrainerConfig._frozen_fits` checks the same in Python. The API server cannot
look at mixed_precision, which may be a text or false: `config_notes` does, and the run."""


class TrainerConfig(Section):
    """A finetuning YAML of llm-on-ray."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": RULES})

    general: General = Field(validation_alias=AliasChoices("General", "general"), serialization_alias="General")
    """The base model, the output, and LoRA."""
    dataset: Dataset = Field(validation_alias=AliasChoices("Dataset", "dataset"), serialization_alias="Dataset")
    """Where the rows are, and how they become tokens."""
    training: Training = Field(
        default=Training(), validation_alias=AliasChoices("Training", "training"), serialization_alias="Training"
    )
    """Optimizer, schedule, device and workers."""

    @model_validator(mode="after")
    def _frozen_fits(self) -> Self:
        if self.general.frozen_dtype is not None and self.training.device != "gpu":
            raise ValueError(FROZEN_NEEDS_GPU)
        if self.general.frozen_dtype is not None and self.training.strategy == "FSDP":
            raise ValueError(FROZEN_NEEDS_DDP)
        return self
