"""The finetuning YAML of llm-on-ray: General, Dataset and Training.

One source for three readers: the command line, the Ray driver, and the operator's CRD (`make crds`). So nothing
heavy is imported here. Keys, defaults and spellings are the union of both schemas that llm-on-ray has had
(``CPU_DDP`` and ``DDP``, torch's and Hugging Face's optimizer names); a key that llm-on-ray requires without need
is optional here.
"""

from __future__ import annotations

from pydantic import AliasChoices, Field

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.config.general import General
from finetune_trainer.config.section import Section
from finetune_trainer.config.training import Training


class TrainerConfig(Section):
    """A finetuning YAML of llm-on-ray."""

    general: General = Field(validation_alias=AliasChoices("General", "general"), serialization_alias="General")
    """The base model, the output, and LoRA."""
    dataset: Dataset = Field(validation_alias=AliasChoices("Dataset", "dataset"), serialization_alias="Dataset")
    """Where the rows are, and how they become tokens."""
    training: Training = Field(
        default=Training(), validation_alias=AliasChoices("Training", "training"), serialization_alias="Training"
    )
    """Optimizer, schedule, device and workers."""
