"""Structural schemas (OpenAPI v3.0), checked as the API server of Kubernetes 1.34 checks them; rules are in `api.cel`.

What is not obvious here is so in its source: apiextensions-apiserver (pruning, defaulting, listtype) and kube-openapi
(validation/validate).
"""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from finetune_operator.api.crd import build_crd

Schema = dict[str, Any]
Path = tuple[str | int, ...]
"""Keys and indices that lead from the object's root to a value."""

INT64 = range(-(2**63), 2**63)
_MAX_SAFE_INTEGER = 2**53 - 1
_PRESERVE = "x-kubernetes-preserve-unknown-fields"


@dataclass(frozen=True)
class Finding:
    """Something wrong with a value; the path may end in a key that is missing."""

    path: Path
    message: str

    def __str__(self) -> str:
        return f"{format_path(self.path)}: {self.message}" if self.path else self.message


def format_path(path: Path) -> str:
    """A path in one word: ``spec.head.tolerations[0].key``, ``metadata.labels['example.com/team']``."""
    parts = [f".{key}" if re.fullmatch(r"[A-Za-z_][\w-]*", str(key), re.ASCII) else f"[{key!r}]" for key in path]
    return "".join(parts).removeprefix(".")


@functools.cache
def crd_schema() -> Schema:
    """Schema of a whole FinetuneJob. Not to be changed: there is one for all."""
    schema: Schema = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema


def violations(schema: Schema, value: Any, path: Path = ()) -> Iterator[Finding]:
    """What strict validation says against a value, unknown fields included and rules (CEL) excluded."""
    if value is None:
        if ("type" in schema and not schema.get("nullable")) or "enum" in schema:
            yield Finding(path, f"null is not allowed; {_wanted(schema)}")
        return
    type_ = schema.get("type")
    if type_ and not _TYPES[type_].holds(value):
        yield Finding(path, f"{_wanted(schema)}, not {describe(value)}{_quotes(type_, value)}")
        return
    if "enum" in schema and not any(_equal(value, choice) for choice in schema["enum"]):
        yield Finding(path, f"{describe(value)} is not allowed; {_wanted(schema)}{_did_you_mean(value, schema['enum'])}")
    if type_:
        yield from _TYPES[type_].check(schema, value, path)


def unknown_fields(schema: Schema | None, value: Any, path: Path = ()) -> Iterator[Finding]:
    """Only the keys that a schema does not know: all that is said about a part that the API server drops unread."""
    schema = schema or {}
    preserved, items = schema.get(_PRESERVE), schema.get("items")
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from unknown_fields(items, item, (*path, index)) if items or not preserved else ()
    elif isinstance(value, dict):
        for name, item in value.items():
            inner = _inner(schema, name)
            if inner is not None:
                yield from unknown_fields(inner, item, (*path, name))
            elif not preserved:
                yield _unknown(schema, name, path)


def without_nulls(schema: Schema, value: Any, leaf: Callable[[Schema, Any], Any] = lambda _, value: value) -> Any:
    """A value without what is null, which the API server drops or takes for absent; `leaf` may change what is no holder."""
    if not schema:
        return value
    if isinstance(value, dict):
        items = ((name, _inner(schema, name) or {}, item) for name, item in value.items())
        return {name: without_nulls(inner, item, leaf) for name, inner, item in items if item is not None or not inner}
    if isinstance(value, list):
        return [without_nulls(schema.get("items", {}), item, leaf) for item in value]
    return leaf(schema, value)


def json_number(value: float) -> float:
    """A number as the API server holds it: what does not fit into 64 bits is a float, infinite if it is no JSON number."""
    if isinstance(value, float) or value in INT64:
        return value
    try:
        return float(value)
    except OverflowError:
        return math.inf


def describe(value: Any) -> str:
    """A value in a few words."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, str):
        return f"the text {_short(value)!r}" if value else "an empty text"
    return f"the number {value}" if isinstance(value, int | float) else "a list" if isinstance(value, list) else "a mapping"


def _short(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    """The API server takes 5.0, and what is as near to it as 5.0000000001."""
    if not _is_number(value):
        return False
    number = json_number(value)
    if isinstance(number, int):
        return True
    if not abs(number) <= _MAX_SAFE_INTEGER:
        return False
    whole = math.trunc(number)
    return number == whole or (whole >= 1 and (number - whole) / (number + whole) < 1e-9)


def _equal(value: Any, choice: Any) -> bool:
    return bool(value == choice) and (type(value) is type(choice) or (_is_number(value) and _is_number(choice)))


def _string(schema: Schema, value: str, path: Path) -> Iterator[Finding]:
    least, most, pattern = schema.get("minLength", 0), schema.get("maxLength", math.inf), schema.get("pattern")
    if len(value) > most:
        yield Finding(path, f"has {len(value)} characters; at most {most} are allowed")
    elif len(value) < least:
        yield Finding(path, "must not be empty" if least == 1 else f"has {len(value)} characters; at least {least} are needed")
    elif pattern and not regular_expression(pattern).search(value):
        yield Finding(path, f"{describe(value)} does not match {pattern}")
    if schema.get("format") == "date-time" and not is_date_time(value):
        yield Finding(path, f"{describe(value)} is no time; write it as 2026-01-31T12:00:00Z")


@functools.cache
def regular_expression(pattern: str) -> re.Pattern[str]:
    r"""A regular expression of Go: `$` is the very end of the text, and `\d` and its like are ASCII."""
    return re.compile(
        re.sub(r"\\.|\[(?:\\.|[^\]\\])*\]|\$", lambda found: r"\Z" if found[0] == "$" else found[0], pattern), re.ASCII
    )


def is_date_time(text: str) -> bool:
    """What go-openapi takes for a date-time: RFC 3339 in any case, and, oddly, whatever follows a second `t`."""
    day, *rest = text.lower().split("t")
    time = re.fullmatch(r"(\d\d):(\d\d):(\d\d)(.\d+)?(z|[+-]\d\d:\d\d)", rest[0], re.ASCII) if rest else None
    return bool(time and is_day(day) and time[1] <= "23" and time[2] <= "59" and time[3] <= "59")


def is_day(text: str) -> bool:
    """Whether a text is a day of the calendar as 2026-01-31. Go has a year 0, a leap year, which Python has not."""
    if not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        return False
    try:
        date.fromisoformat(text.replace("0000-", "2000-", 1) if text.startswith("0000-") else text)
    except ValueError:
        return False
    return True


def _number(schema: Schema, value: float, path: Path) -> Iterator[Finding]:
    number = json_number(value)
    if not math.isfinite(number):
        yield Finding(path, f"{value} is no JSON number")
        return
    low, high = schema.get("minimum", -math.inf), schema.get("maximum", math.inf)
    # The API server cuts off the fraction of a bound before it compares a whole number with it: 0 satisfies minimum 0.01.
    least, most = (math.trunc(bound) if isinstance(number, int) and math.isfinite(bound) else bound for bound in (low, high))
    if number < least or (number == least and schema.get("exclusiveMinimum")):
        yield Finding(path, f"is {value}; must be {'more than' if schema.get('exclusiveMinimum') else 'at least'} {low}")
    if number > most or (number == most and schema.get("exclusiveMaximum")):
        yield Finding(path, f"is {value}; must be {'less than' if schema.get('exclusiveMaximum') else 'at most'} {high}")


def _array(schema: Schema, value: list[Any], path: Path) -> Iterator[Finding]:
    yield from _count(len(value), "items", schema.get("minItems", 0), schema.get("maxItems", math.inf), path)
    for index, item in enumerate(value):
        yield from violations(schema["items"], item, (*path, index))
    yield from _duplicates(schema, value, path)


def _duplicates(schema: Schema, value: list[Any], path: Path) -> Iterator[Finding]:
    kind, names = schema.get("x-kubernetes-list-type"), schema.get("x-kubernetes-list-map-keys", ())
    if kind not in {"map", "set"} or (kind == "map" and not all(isinstance(item, dict | None) for item in value)):
        return
    seen = set()
    for index, item in enumerate(value):
        fields = item or {}
        key = repr([fields[name] for name in names if fields.get(name) is not None] if kind == "map" else item)
        if key in seen:
            yield Finding((*path, index), f"the same {' and '.join(names) or 'value'} as an item above; each may occur once")
        seen.add(key)


def _object(schema: Schema, value: Mapping[str, Any], path: Path) -> Iterator[Finding]:
    # A null that is not allowed is dropped before anything is checked.
    kept = {name: item for name, item in value.items() if item is not None or not _drops_null(_inner(schema, name))}
    yield from _count(len(kept), "entries", schema.get("minProperties", 0), schema.get("maxProperties", math.inf), path)
    for name in schema.get("required", ()):
        if name not in kept:
            yield Finding((*path, name), "required, and null is as good as missing" if name in value else "required, but missing")
    silent = _PRESERVE in schema or not {"properties", "additionalProperties"} & schema.keys()
    for name in value:
        inner = _inner(schema, name)
        if inner is not None:
            yield from violations(inner, kept[name], (*path, name)) if name in kept else ()
        elif not silent:
            yield _unknown(schema, name, path)


def _inner(schema: Schema, name: str) -> Schema | None:
    inner: Schema | None = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
    return inner


def _drops_null(schema: Schema | None) -> bool:
    return schema is not None and not schema.get("nullable")


def _count(count: int, what: str, least: float, most: float, path: Path) -> Iterator[Finding]:
    if count > most:
        yield Finding(path, f"has {count} {what}; at most {most} are allowed")
    if count < least:
        yield Finding(path, f"has {count} {what}; at least {least} are needed")


def _unknown(schema: Schema, name: str, path: Path) -> Finding:
    near = _did_you_mean(name, schema.get("properties", ()))
    homes = [] if near else _homes().get(name, [])
    return Finding((*path, name), "unknown field" + (near or (f"; did you mean {format_path(homes[0])}?" if homes else "")))


@functools.cache
def _homes() -> dict[str, list[Path]]:
    """Name → where in spec there are fields of that name; the same last word in another section is a likely mistake."""
    found: dict[str, list[Path]] = {}
    stack: list[tuple[Path, Schema]] = [(("spec",), crd_schema()["properties"]["spec"])]
    for path, schema in stack:
        for name, inner in schema.get("properties", {}).items():
            found.setdefault(name, []).append((*path, name))
            stack.append(((*path, name), inner))
    return found


def _did_you_mean(value: Any, choices: Iterable[Any]) -> str:
    words = {choice.lower(): choice for choice in choices if isinstance(choice, str)}
    near = difflib.get_close_matches(value.lower(), words, n=1) if isinstance(value, str) else []
    return f"; did you mean {words[near[0]]}?" if near else ""


def _wanted(schema: Schema) -> str:
    if "enum" in schema:
        return f"must be one of {', '.join(choice if isinstance(choice, str) else describe(choice) for choice in schema['enum'])}"
    return f"must be {_TYPES[schema['type']].words}"


def _quotes(type_: str, value: Any) -> str:
    if type_ == "string" and isinstance(value, bool | int | float):
        return "; put it into quotes" + (" (yes, no, on and off are true and false in YAML)" if isinstance(value, bool) else "")
    return "; write it without quotes" if type_ in {"integer", "number", "boolean"} and isinstance(value, str) else ""


@dataclass(frozen=True)
class _Type:
    words: str
    holds: Callable[[Any], bool]
    check: Callable[[Schema, Any, Path], Iterator[Finding]]


_TYPES = {
    "string": _Type("text", lambda value: isinstance(value, str), _string),
    "integer": _Type("a whole number", _is_integer, _number),
    "number": _Type("a number", _is_number, _number),
    "boolean": _Type("true or false", lambda value: isinstance(value, bool), lambda *_: iter(())),
    "array": _Type("a list", lambda value: isinstance(value, list), _array),
    "object": _Type("a mapping", lambda value: isinstance(value, dict), _object),
}
