"""Warnings about keys that have no effect, or not the effect that they once had."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.config.obsolete_keys import INACTIVE_KEYS, OBSOLETE_KEYS
from finetune_trainer.config.optimizer_names import RENAMED_OPTIMIZERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.config.schema import TrainerConfig


def config_notes(config: TrainerConfig) -> list[str]:
    """One line for each key that is set and has no effect, or not the effect that it once had."""
    return [*_obsolete_keys(config), *_inactive_keys(config), *_renamed_optimizer(config), *_wide_compute_type(config)]


def _obsolete_keys(config: TrainerConfig) -> Iterator[str]:
    for key, why in OBSOLETE_KEYS.items():
        section, _, name = key.partition(".")
        if getattr(getattr(config, section.lower()), name) not in (None, ""):
            yield f"{key}: obsolete and ignored: {why}"


def _inactive_keys(config: TrainerConfig) -> Iterator[str]:
    for key, instead in INACTIVE_KEYS.items():
        section, _, name = key.partition(".")
        part = getattr(config, section.lower())
        if getattr(part, name) != type(part).model_fields[name].default:
            yield f"{key}: no effect in this release: {instead}"


def _renamed_optimizer(config: TrainerConfig) -> Iterator[str]:
    name = config.training.optimizer
    if name.lower() in RENAMED_OPTIMIZERS:
        yield f"Training.optimizer: {name} is gone from current releases; {config.training.torch_optimizer} takes its place"


FROZEN_NEEDS_BF16 = "General.frozen_dtype: fp8 needs Training.mixed_precision: bf16; a run without it is refused when it starts"


def _wide_compute_type(config: TrainerConfig) -> Iterator[str]:
    if config.general.frozen_dtype is not None and config.training.mixed_precision != "bf16":
        yield FROZEN_NEEDS_BF16
