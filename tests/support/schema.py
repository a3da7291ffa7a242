"""The part of OpenAPI v3.0 structural schemas that the CRD uses, checked as the API server checks it (without CEL)."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from finetune_operator.api.crd import build_crd

Schema = dict[str, Any]

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@functools.cache
def crd_schema() -> Schema:
    """Schema of a whole FinetuneJob."""
    schema: Schema = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def violations(schema: Schema, value: Any, path: str = "") -> Iterator[str]:
    """What strict validation says against a value: unknown fields too."""
    if value is None:
        if not schema.get("nullable"):
            yield f"{path}: null"
        return
    if "enum" in schema and value not in schema["enum"]:
        yield f"{path}: {value!r} is none of {schema['enum']}"
    if schema.get("x-kubernetes-preserve-unknown-fields"):
        return
    type_ = schema["type"]
    if not isinstance(value, _TYPES[type_]) or (isinstance(value, bool) and type_ != "boolean"):
        yield f"{path}: {value!r} is no {type_}"
        return
    check = {"string": _string, "integer": _number, "number": _number, "array": _array, "object": _object}.get(type_)
    if check:
        yield from check(schema, value, path)


def _string(schema: Schema, value: str, path: str) -> Iterator[str]:
    if not schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", math.inf):
        yield f"{path}: {len(value)} characters"
    if "pattern" in schema and not re.search(schema["pattern"], value):
        yield f"{path}: {value!r} does not match {schema['pattern']}"
    if schema.get("format") == "date-time":
        try:
            datetime.fromisoformat(value)
        except ValueError:
            yield f"{path}: {value!r} is no time"


def _number(schema: Schema, value: float, path: str) -> Iterator[str]:
    if not math.isfinite(value):
        yield f"{path}: {value} is no JSON number"
    if schema.get("format") == "int64" and not -(2**63) <= value < 2**63:
        yield f"{path}: {value} does not fit into 64 bits"
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    if value < low or (value == low and schema.get("exclusiveMinimum")):
        yield f"{path}: {value} is too small"
    if value > high or (value == high and schema.get("exclusiveMaximum")):
        yield f"{path}: {value} is too large"


def _array(schema: Schema, value: list[Any], path: str) -> Iterator[str]:
    if not schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", math.inf):
        yield f"{path}: {len(value)} items"
    for index, item in enumerate(value):
        yield from violations(schema["items"], item, f"{path}[{index}]")


def _object(schema: Schema, value: Schema, path: str) -> Iterator[str]:
    if len(value) > schema.get("maxProperties", math.inf):
        yield f"{path}: {len(value)} properties"
    yield from (f"{path}.{name}: required" for name in schema.get("required", ()) if name not in value)
    properties, others = schema.get("properties"), schema.get("additionalProperties")
    if properties is None and others is None:
        return
    for name, item in value.items():
        inner = (properties or {}).get(name, others)
        if inner is None:
            yield f"{path}.{name}: unknown field"
        else:
            yield from violations(inner, item, f"{path}.{name}")
