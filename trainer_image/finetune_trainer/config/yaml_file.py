"""Read the finetuning YAML, and tell the user about all of its faults at once.

Neither torch nor Ray is imported here: the operator's command line checks files with the same function.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from finetune_trainer.config.schema import INACTIVE_KEYS, OBSOLETE_KEYS, RENAMED_OPTIMIZERS, TrainerConfig
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, and what the user should know about the file."""

    config: TrainerConfig
    warnings: tuple[str, ...]
    """Obsolete keys and, unless they were errors, unknown keys; one line each, with the file's name."""


def load_config(path: str | os.PathLike[str], *, strict: bool = False) -> LoadedConfig:
    """Read and check a YAML file.

    Args:
        path: the file; messages name it as it is written here.
        strict: unknown keys are errors.

    Raises:
        ConfigError: with all errors, each as one line that starts with the file.
    """
    name = os.fspath(path)
    raw = read_mapping(name)
    unknown = [f"{name}: {line}" for line in _unknown_keys(raw)]
    errors = list(unknown) if strict else []
    try:
        config = TrainerConfig.model_validate(raw)
    except ValidationError as error:
        errors = [f"{name}: {line}" for line in _sentences(error)] + errors
    if errors:
        raise ConfigError(errors)
    notes = [f"{name}: {line}" for line in config_notes(config)]
    return LoadedConfig(config, tuple(notes + unknown))


def config_notes(config: TrainerConfig) -> list[str]:
    """What the user should know about keys that are accepted and do not do what they once did; one line each."""
    return [*_obsolete_keys(config), *_inactive_keys(config), *_renamed_optimizer(config)]


def read_mapping(name: str) -> Mapping[str, Any]:
    """Read a file of YAML 1.2 that holds a mapping.

    Raises:
        ConfigError: it cannot be read, or where it is not YAML.
    """
    return _parse(name, _read(name))


def _read(name: str) -> str:
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise ConfigError([f"{name}: cannot read the configuration: {error.strerror}"]) from None
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: the file is not UTF-8 text"]) from None


def _parse(name: str, text: str) -> Mapping[str, Any]:
    # The pure parser speaks YAML 1.2, as llm-on-ray does: `no` is a word and `1e-5` is a number.
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = str(error.problem or error.context).splitlines()[0]
        raise ConfigError([f"{place}: {problem}"]) from None
    except YAMLError as error:
        raise ConfigError([f"{name}: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"{name}: the file must hold a mapping, as `key: value`"])
    return raw


def _sentences(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        yield f"{key}: {message}" if key else message


def _unknown_keys(raw: Mapping[str, Any]) -> Iterator[str]:
    known = list(_known_keys(TrainerConfig))
    for key in _keys(raw, TrainerConfig):
        if key not in known:
            near = _nearest(key, known)
            yield f"{key}: unknown key" + (f"; did you mean {near}?" if near else "")


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


def _nearest(key: str, known: list[str]) -> str | None:
    """The same last word in another section is nearer than a similar whole name."""
    last = key.rpartition(".")[2]
    moved = [name for name in known if name.rpartition(".")[2] == last]
    return next(iter(moved or difflib.get_close_matches(key, known, n=1)), None)


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, part in _fields(model).items():
        yield prefix + name
        if part is not None:
            yield from _known_keys(part, f"{prefix}{name}.")


def _keys(raw: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys in the file, in its order; not below free-form or unknown keys."""
    fields = _fields(model)
    spelling = {name.lower(): name for name in fields} if model is TrainerConfig else {}
    for written, value in raw.items():
        name = spelling.get(str(written), str(written))
        yield prefix + name
        part = fields.get(name)
        if part is not None and isinstance(value, dict):
            yield from _keys(value, part, f"{prefix}{name}.")


def _fields(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Names as written in YAML → the model of that part, if it is one."""
    fields = model.model_fields.items()
    return {field.serialization_alias or name: _model_in(field.annotation) for name, field in fields}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = (option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return next(models, None)
