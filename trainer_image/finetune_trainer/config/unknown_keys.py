"""Find the keys of a YAML file that the configuration does not have."""

from __future__ import annotations

import difflib
from types import UnionType
from typing import TYPE_CHECKING, Any, Union, get_args, get_origin

from pydantic import BaseModel

from finetune_trainer.config.schema import TrainerConfig

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def unknown_keys(raw: Mapping[str, Any]) -> Iterator[str]:
    """One line for each key that the configuration does not have, with the nearest key that it has."""
    known = list(_known_keys(TrainerConfig))
    for key in _keys(raw, TrainerConfig):
        if key not in known:
            near = _nearest(key, known)
            yield f"{key}: unknown key" + (f"; did you mean {near}?" if near else "")


def _nearest(key: str, known: list[str]) -> str | None:
    """The nearest known key. A key with the same last word in another section is nearer than one with a similar whole name."""
    last = key.rpartition(".")[2]
    moved = [name for name in known if name.rpartition(".")[2] == last]
    return next(iter(moved or difflib.get_close_matches(key, known, n=1)), None)


def _known_keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, part in _fields(model).items():
        yield prefix + name
        if part is not None:
            yield from _known_keys(part, f"{prefix}{name}.")


def _keys(raw: Mapping[str, Any], model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted names of the keys in the file, in its order, without keys below free-form or unknown ones."""
    fields = _fields(model)
    spelling = {name.lower(): name for name in fields} if model is TrainerConfig else {}
    for written, value in raw.items():
        name = spelling.get(str(written), str(written))
        yield prefix + name
        part = fields.get(name)
        if part is not None and isinstance(value, dict):
            yield from _keys(value, part, f"{prefix}{name}.")


def _fields(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Names as written in YAML → the model of that section; None: the key is no section."""
    fields = model.model_fields.items()
    return {field.serialization_alias or name: _model_in(field.annotation) for name, field in fields}


def _model_in(annotation: Any) -> type[BaseModel] | None:
    options = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    models = (option for option in options if isinstance(option, type) and issubclass(option, BaseModel))
    return next(models, None)
