"""Renders what becomes of each key of llm-on-ray: ``python docs/tools/llm_on_ray.py FILE``.

llm-on-ray's keys are those of its files in tests/data/llm_on_ray. What happens to a key is asked of the models of the
configuration; what is said of a path, a token or another objective is what `finetune convert` says.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from ruamel.yaml import YAML

from finetune_client.convert import convert_config, options_of
from finetune_trainer.config.obsolete_keys import OBSOLETE_KEYS
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]

HEAD = """<!-- Rendered by `make docs`; do not edit. -->

# Keys of llm-on-ray

What becomes of each key of a finetuning YAML of llm-on-ray, here and in `spec.config` of a FinetuneJob. What a key means is in
[FinetuneJob](finetunejob.md), and how to convert a file in [From llm-on-ray](../from-llm-on-ray.md).

| Key | Here |
|---|---|
"""

TRIED: dict[str, Any] = {
    "General.base_model": "/models/gpt2",
    "General.tokenizer_name": "/models/gpt2-words",
    "General.config.use_auth_token": "hf_0123456789",
    "General.config.token": "hf_0123456789",
    "General.trainer_type": "dpo",
    "Dataset.train_file": "/data/rows.jsonl",
    "Dataset.validation_file": "/data/held-out.jsonl",
    "Dataset.padding": False,
    "Training.optimizer": "adamw_hf",
    "Training.device": "HPU",
    "Training.accelerate_mode": "GPU_DEEPSPEED",
    "Training.resources_per_worker.HPU": 1,
    "Training.finetuning_model": "dpo",
    "Training.use_dpo": True,
    "Training.beta": 0.1,
}
"""Values that `finetune convert` does not take as they are."""


def render() -> str:
    """The page."""
    rows = [f"| `{key}` | {_told(key)} |" for key in sorted(_of_llm_on_ray())]
    new = [f"`{key}`" for key in sorted(set(_known(TrainerConfig)) - _of_llm_on_ray())]
    return f"{HEAD}{chr(10).join(rows)}\n\nKeys that llm-on-ray does not have: {', '.join(new)}.\n"


def _of_llm_on_ray() -> set[str]:
    files = [*(ROOT / "tests" / "data" / "llm_on_ray").glob("*.yaml")]
    return {key for file in files for key in _written(YAML(typ="safe", pure=True).load(file))} | {*TRIED, *OBSOLETE_KEYS}


def _written(part: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in part.items():
        if isinstance(value, dict) and prefix + key not in OBSOLETE_KEYS:
            yield from _written(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _known(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        key = prefix + (field.serialization_alias or name)
        kinds = [field.annotation, *get_args(field.annotation)]
        below = next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        yield from _known(below, f"{key}.") if below else [key]


def _told(key: str) -> str:
    if key in TRIED:
        value = TRIED[key]
        return f"as it is; `{json.dumps(value).strip(chr(34))}`: {_converted(key, value)}"
    if key in OBSOLETE_KEYS:
        return f"accepted without effect: {OBSOLETE_KEYS[key]}"
    taken = any(f"{known}.".startswith(f"{key}.") for known in _known(TrainerConfig))
    return "as it is" if taken else _converted(key, 1)


def _converted(key: str, value: Any) -> str:
    """What `finetune convert` says of a value."""
    given: dict[str, Any] = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}, "Training": {}}
    *sections, name = key.split(".")
    part = given
    for section in sections:
        part = part.setdefault(section, {})
    part[name] = value
    try:
        said = convert_config(given, options_of("file")).notes
    except ConfigError as error:
        said = error.errors
    texts = [line.removeprefix(f"file: {key}: ") for line in said if line.startswith(f"file: {key}: ")]
    texts = texts or [line.removeprefix("file: ") for line in said]
    return texts[0].replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(render(), encoding="utf-8")
