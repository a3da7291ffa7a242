"""The settings of a run, for its report."""

from __future__ import annotations

from typing import Any

from finetune_trainer.config.schema import TrainerConfig


def settings(config: TrainerConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """All keys as `Section.key` with their values: those that say something other than the default, and the others."""
    base: Any = {"General": {"base_model": "?"}, "Dataset": {"train_file": "?"}}
    given, defaults = _flat(config), _flat(TrainerConfig.model_validate(base))
    # A key of a section that is absent by default has no default here.
    differing = {key: value for key, value in given.items() if key not in defaults or defaults[key] != value}
    return differing, {key: value for key, value in given.items() if key not in differing}


def _flat(config: TrainerConfig) -> dict[str, Any]:
    found: dict[str, Any] = {}
    left = [("", config.model_dump(mode="json", by_alias=True))]
    while left:
        prefix, values = left.pop(0)
        for key, value in values.items():
            if isinstance(value, dict):
                left.append((f"{prefix}{key}.", value))
            else:
                found[prefix + key] = value
    return found
