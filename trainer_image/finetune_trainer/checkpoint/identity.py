"""What decides whether a run may resume exactly from a checkpoint."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from finetune_trainer.files import digest

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run
    from finetune_trainer.data.splits import Data


class Identity(BaseModel):
    """What a checkpoint and a run must have in common so that the run can resume from it exactly; and by how many ranks, and how,
    it was written, which may differ.
    """

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    run: str
    """Name of the run, or of this start of a run without a name."""
    configuration: str
    """SHA-256, in hex, of the settings that the weights depend on and of the tokenised rows."""
    world_size: int
    strategy: Literal["DDP", "FSDP"]
    batch_ranks: int | None = None
    """Ranks that the batches of the run were made for; None: as many as there were."""
    packed: bool | None = None
    """Whether the rows are packed without padding; None: unknown, the checkpoint is of a release that did not say."""

    @property
    def sharded(self) -> bool:
        """Whether each rank has a file of its own."""
        return self.strategy == "FSDP" and self.world_size > 1

    @property
    def made_for(self) -> int:
        """Ranks that the batches of the run were made for."""
        return self.batch_ranks or self.world_size

    @property
    def layout(self) -> str:
        """In words, by whom the tensors are held."""
        return f"{self.strategy} with {self.world_size} ranks"

    def shard(self, rank: int) -> str:
        """Name of the file with this rank's tensors."""
        return f"rank-{rank if self.sharded else 0:05}.safetensors"

    @property
    def shards(self) -> list[str]:
        """Names of all files with tensors, by rank."""
        return [self.shard(rank) for rank in range(self.world_size if self.sharded else 1)]


GENERAL = {"base_model", "tokenizer_name", "lora_config"}


DATASET = {"group", "shuffle", "padding_side"}


TRAINING = {"optimizer", "batch_size", "epochs", "max_train_steps", "learning_rate", "lr_scheduler", "weight_decay",
            "mixed_precision", "device", "gradient_accumulation_steps", "seed"}  # fmt: skip
"""Settings that the weights depend on. Those of the tokenising need no key: the digest covers the tokens themselves."""


def configuration_digest(run: Run, data: Data) -> str:
    """SHA-256, in hex, of the settings and the tokenised rows, which determine the weights apart from the workers."""
    config = run.config
    settings = {
        "general": config.general.model_dump(mode="json", include=GENERAL),
        "dataset": config.dataset.model_dump(mode="json", include=DATASET),
        "training": config.training.model_dump(mode="json", include=TRAINING),
    }
    if config.training.tokens_per_step is not None:  # checkpoints of releases without this key stay what they are
        settings["training"]["tokens_per_step"] = config.training.tokens_per_step
    if config.general.frozen_dtype is not None:  # the same
        settings["general"]["frozen_dtype"] = config.general.frozen_dtype
    rows = (data.train.digest.encode(), data.train_rows.tobytes())
    return digest(json.dumps(settings, sort_keys=True).encode(), *rows)
