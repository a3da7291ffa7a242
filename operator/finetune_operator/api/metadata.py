"""Metadata of a new object, checked as the API server checks it for every kind (apimachinery: api/validation)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from finetune_operator.api.schema import INT64, Finding, Path, Schema, describe, is_day, json_number, violations

PATH: Path = ("metadata",)
_MAX_ANNOTATION_BYTES = 256 * 1024
_GENERATED = "x" * 5
"""Stands for the letters that the API server appends to generateName."""
_MAX_GENERATE_NAME = 63 - len(_GENERATED)

_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME = r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]"
_FINALIZERS = {"orphan", "foregroundDeletion"}


def _nullable(**schema: Any) -> Schema:
    return {"nullable": True, **schema}


def _fields(**properties: Schema) -> Schema:
    return _nullable(type="object", properties=properties)


_TEXT, _NUMBER, _FLAG = _nullable(type="string"), _nullable(type="number"), _nullable(type="boolean")
_TEXTS = _nullable(type="object", additionalProperties=_TEXT)
_OWNER = _fields(
    **dict.fromkeys(("apiVersion", "kind", "name", "uid"), _TEXT), **dict.fromkeys(("controller", "blockOwnerDeletion"), _FLAG)
)
_MANAGER = _fields(
    **dict.fromkeys(("manager", "operation", "apiVersion", "time", "fieldsType", "subresource"), _TEXT),
    fieldsV1={"x-kubernetes-preserve-unknown-fields": True},
)
_INTEGERS = ("generation", "deletionGracePeriodSeconds")
_TIMES = ("creationTimestamp", "deletionTimestamp")
_SCHEMA = _fields(
    **dict.fromkeys(("name", "generateName", "namespace", "selfLink", "uid", "resourceVersion", *_TIMES), _TEXT),
    **dict.fromkeys(_INTEGERS, _NUMBER),
    **dict.fromkeys(("labels", "annotations"), _TEXTS),
    ownerReferences=_nullable(type="array", items=_OWNER),
    finalizers=_nullable(type="array", items=_TEXT),
    managedFields=_nullable(type="array", items=_MANAGER),
)
"""metav1.ObjectMeta as Go reads it: null is as good as nothing everywhere."""


def name_and_source(metadata: Any) -> tuple[str, str]:
    """The name that the object gets, empty for none, its last letters made up if it is generated; and the field it is from."""
    texts = {key: text for key, text in metadata.items() if isinstance(text, str)} if isinstance(metadata, dict) else {}
    name, prefix = texts.get("name", ""), texts.get("generateName", "")
    return (prefix[:_MAX_GENERATE_NAME] + _GENERATED, "generateName") if prefix and not name else (name, "name")


def metadata_violations(metadata: Any) -> Iterator[Finding]:
    """What the API server says against ``metadata`` of an object to be created, whatever its kind."""
    types = list(violations(_SCHEMA, metadata, PATH))
    if types or metadata is None:
        yield from types or [Finding((*PATH, "name"), "name or generateName is required")]
        return
    yield from _numbers_and_times(metadata)
    yield from _names(metadata)
    yield from _labels(metadata.get("labels") or {})
    yield from _annotations(metadata.get("annotations") or {})
    yield from _owners(metadata.get("ownerReferences") or [])
    yield from _finalizers([name or "" for name in metadata.get("finalizers") or ()])


def _numbers_and_times(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    for name in _INTEGERS:
        if metadata.get(name) is not None and not _is_int64(metadata[name]):
            yield Finding((*PATH, name), "must be a whole number of 64 bits")
    places: list[tuple[Path, Any]] = [((*PATH, name), metadata.get(name)) for name in _TIMES]
    entries = enumerate(metadata.get("managedFields") or ())
    places += [((*PATH, "managedFields", index, "time"), (entry or {}).get("time")) for index, entry in entries]
    for path, text in places:
        if text is not None and not is_rfc3339(text):
            yield Finding(path, f"{describe(text)} is no time; write it as 2026-01-31T12:00:00Z")


def _is_int64(value: float) -> bool:
    number = json_number(value)
    return math.isfinite(number) and number == int(number) and int(number) in INT64


def is_rfc3339(text: str) -> bool:
    """Whether Go parses a text as RFC 3339; it takes hours of one digit, a decimal comma, and +24:60."""
    found = re.fullmatch(
        r"([0-9]{4}-[0-9]{2}-[0-9]{2})T([0-9]{1,2}):([0-9]{2}):([0-9]{2})([.,][0-9]+)?(Z|[+-]([0-9]{2}):([0-9]{2}))", text
    )
    if not found or not is_day(found[1]):
        return False
    hour, minute, second, zone_hour, zone_minute = (int(found[group] or 0) for group in (2, 3, 4, 7, 8))
    return hour <= 23 and minute <= 59 and second <= 59 and zone_hour <= 24 and zone_minute <= 60


def _names(metadata: Mapping[str, Any]) -> Iterator[Finding]:
    prefix, namespace = metadata.get("generateName") or "", metadata.get("namespace") or ""
    name, source = name_and_source(metadata)
    # what the API server does to a prefix that ends in a dash: it takes away two characters, not one
    masked = f"{prefix[:-2]}a" if len(prefix) > 1 and prefix.endswith("-") else prefix
    if not name:
        yield Finding((*PATH, "name"), "name or generateName is required")
    wrong = {field for field, text in ((source, name), ("generateName", masked)) if text and not _is_subdomain(text)}
    for field in sorted(wrong):
        yield Finding((*PATH, field), f"{describe(metadata[field])}: {_NAME_WORDS}")
    if namespace and not (len(namespace) <= 63 and re.fullmatch(_LABEL, namespace)):
        yield Finding((*PATH, "namespace"), f"{describe(namespace)}: at most 63 lower-case letters, digits and '-'")


_NAME_WORDS = "a name has at most 253 lower-case letters, digits, '-' and '.', and begins and ends with a letter or digit"
_KEY_WORDS = (
    "a key is a name of at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends; "
    "before it there may be a domain and '/'"
)


def _is_subdomain(text: str) -> bool:
    return len(text) <= 253 and re.fullmatch(_SUBDOMAIN, text) is not None


def is_qualified_name(text: str) -> bool:
    """Whether a text can be the key of a label: a name, perhaps with a domain and ``/`` before it."""
    domain, slash, name = text.rpartition("/")
    return (not slash or _is_subdomain(domain)) and len(name) <= 63 and re.fullmatch(_NAME, name) is not None


def _labels(labels: Mapping[str, str | None]) -> Iterator[Finding]:
    for key, value in labels.items():
        if not is_qualified_name(key):
            yield Finding((*PATH, "labels", key), _KEY_WORDS)
        if value and not (len(value) <= 63 and re.fullmatch(_NAME, value)):
            yield Finding(
                (*PATH, "labels", key),
                f"{describe(value)}: a value is empty, or at most 63 letters, digits, '-', '_' and '.', "
                "with a letter or digit at both ends",
            )


def _annotations(annotations: Mapping[str, str | None]) -> Iterator[Finding]:
    for key in annotations:
        if not is_qualified_name(key.replace("İ", "i").lower()):  # Go's lower case of İ is i; Python's has a dot more
            yield Finding((*PATH, "annotations", key), _KEY_WORDS)
    texts = [text or "" for item in annotations.items() for text in item]
    if sum(len(text.encode(errors="surrogatepass")) for text in texts) > _MAX_ANNOTATION_BYTES:
        yield Finding((*PATH, "annotations"), "keys and values have more than 256 KiB together")


def _owners(owners: list[Mapping[str, Any] | None]) -> Iterator[Finding]:
    path = (*PATH, "ownerReferences")
    controllers = []
    for index, owner in enumerate(owners):
        fields = {key: value for key, value in (owner or {}).items() if value is not None}
        yield from (Finding((*path, index, key), "must not be empty") for key in ("kind", "name", "uid") if not fields.get(key))
        group, _, version = fields.get("apiVersion", "").rpartition("/")
        if not version or "/" in group:
            yield Finding((*path, index, "apiVersion"), "must be a version, or a group, '/' and a version")
        if not group and version == "v1" and fields.get("kind") == "Event":
            yield Finding((*path, index), "an Event cannot be an owner")
        if fields.get("controller") and fields not in controllers:  # the same owner twice is dropped
            controllers.append(fields)
    if len(controllers) > 1:
        yield Finding(path, "only one owner can be the controller")


def _finalizers(names: list[str]) -> Iterator[Finding]:
    path = (*PATH, "finalizers")
    yield from (Finding((*path, index), _KEY_WORDS) for index, name in enumerate(names) if not is_qualified_name(name))
    if set(names) >= _FINALIZERS:
        yield Finding(path, "orphan and foregroundDeletion cannot be there both")
