"""Mistakes in FinetuneJobs: each a small change of an object that was right, at a place that its schema has."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

from tests.support.generate import Object, Schema, Source

from finetune_operator.api.schema import crd_schema


@dataclass(frozen=True)
class Place:
    """A value in an object, and the schema that it must satisfy."""

    path: str
    schema: Schema
    holder: Any
    key: Any

    @property
    def value(self) -> Any:
        return self.holder[self.key]

    def put(self, value: Any) -> None:
        self.holder[self.key] = value


Mistake = Callable[[Random, Place], bool]
"""Makes a mistake at a place; False if it does not apply there."""


def places(schema: Schema, holder: Any, key: Any, path: str = "") -> Iterator[Place]:
    """Every value of an object that the schema describes, the object itself included."""
    yield Place(path, schema, holder, key)
    value = holder[key]
    if isinstance(value, list) and "items" in schema:
        for index in range(len(value)):
            yield from places(schema["items"], value, index, f"{path}[]")
    elif isinstance(value, dict):
        for name in value:
            inner = schema.get("properties", {}).get(name) or schema.get("additionalProperties")
            if isinstance(inner, dict):
                yield from places(inner, value, name, f"{path}.{name}" if "properties" in schema else f"{path}[]")


def drop_required(random: Random, place: Place) -> bool:
    names = [name for name in place.schema.get("required", ()) if isinstance(place.value, dict) and name in place.value]
    if names:
        del place.value[random.choice(names)]
    return bool(names)


def unknown_key(random: Random, place: Place) -> bool:
    if not isinstance(place.value, dict) or "properties" not in place.schema:
        return False
    place.value[random.choice(("surplus", "", "config", "name", "a.b", "Ä", "x" * 300))] = random.choice((1, None, "a", {}, []))
    return True


def misspelt_key(random: Random, place: Place) -> bool:
    if not isinstance(place.value, dict) or "properties" not in place.schema or not place.value:
        return False
    name = random.choice(list(place.value))
    middle = len(name) // 2
    near = {name.lower(), name.title(), name.replace("_", ""), name.replace("_", "-")}
    near |= {name + "s", name[:-1], f" {name}", f"{name}\n", name[:middle] + name[middle + 1 :], name[:1].swapcase() + name[1:]}
    wrong = random.choice(sorted(near - {name}))
    place.value[wrong] = place.value[name] if random.random() < 0.3 else place.value.pop(name)
    return True


ALIENS: tuple[Any, ...] = (
    "5", "", "true", "null", "a", 5, 0, -1, 5.5, 5.0, True, False, None, [], {}, [None], ["a"], [[]], {"a": 1}, {"": None},
)  # fmt: skip


def wrong_type(random: Random, place: Place) -> bool:
    place.put(copy.deepcopy(random.choice([item for item in ALIENS if type(item) is not type(place.value)])))
    return True


def null(_random: Random, place: Place) -> bool:
    place.put(None)
    return True


def beyond_bounds(random: Random, place: Place) -> bool:
    schema = place.schema
    if schema.get("type") not in {"integer", "number"} or "minimum" not in schema:
        return False
    low, high = schema["minimum"], schema["maximum"]
    beside = [low, high, low - 1, high + 1, low + 1, high - 1, -low, -high, low * 1.0, high * 1.0, int(low)]
    if schema["type"] == "number":
        beside += [math.nextafter(bound, direction) for bound in (low, high) for direction in (-math.inf, math.inf)]
    place.put(random.choice(beside))
    return True


def wrong_number(random: Random, place: Place) -> bool:
    if place.schema.get("type") not in {"integer", "number"}:
        return False
    floats = (5.0, 1e0, 1e2, 5.5, 0.1 + 0.2, 1e308, -1e308, 5e-324, -0.0, 1e16, 1e19)
    integers = (0, 2**31, 2**53 + 1, 2**63 - 1, 2**63, 2**64, 10**30, -(2**63), -(2**63) - 1)
    texts = ("1", "1.0", "1e3", "0x10", "1_000", " 1", "NaN", "Infinity")
    place.put(random.choice(random.choice((floats, integers, texts))))
    return True


def wrong_length(random: Random, place: Place) -> bool:
    """One too many, or one too few: characters, items, entries."""
    value, schema = place.value, place.schema
    if isinstance(value, str) and "maxLength" in schema:
        filler = random.choice((value[-1:] or "a", "a", "é", "🎉"))
        place.put(random.choice((value.ljust(schema["maxLength"] + 1, filler), value.ljust(schema["maxLength"], filler), "")))
    elif isinstance(value, list) and "maxItems" in schema:
        item = value[:1] or [Source(str(random.random())).draw(schema["items"], f"{place.path}[]")]
        place.put(copy.deepcopy(random.choice((item * (schema["maxItems"] + 1), item * schema["maxItems"], item * 2, []))))
    elif isinstance(value, dict) and "maxProperties" in schema:
        item = next(iter(value.values()), "a")
        place.put({f"key{number}": item for number in range(schema["maxProperties"] + random.choice((0, 1)))})
    else:
        return False
    return True


ALONE = [
    "..", ".", "/", "-", "~", "", "İ", "ſ", "K", "１", "a//b", "a/./b", "/etc", "-v", "...", "a..b", "RAY_X", "HF_TOKEN",
    "\ufeff",
]  # fmt: skip


def wrong_text(random: Random, place: Place) -> bool:
    """What a pattern, an enum or a rule does not expect; and what they might let through."""
    value = place.value
    if not isinstance(value, str):
        return False
    before = [f"{text}{value}" for text in ("\n", " ", "-", "/", "../", "./", "_", "~")]
    after = [f"{value}{text}" for text in ("\n", " ", "-", "/", "/../x", "\x00", "ä", ".", "\u2028")]
    cases = [value.upper(), value.lower(), value.title(), value.swapcase()]
    place.put(random.choice(before + after + cases + ALONE))
    return True


def wrong_choice(random: Random, place: Place) -> bool:
    """The words that YAML 1.1 and people take for a choice."""
    if "enum" not in place.schema and "x-kubernetes-validations" not in place.schema:
        return False
    words = (0, 1, 0.0, False, True, None, "no", "No", "NO", "off", "false", "False", "FALSE", "true", "none", "null", "", [], {})
    others = [word for word in place.schema.get("enum", ()) if isinstance(word, str)] or ["cpu"]
    word = random.choice(others)
    place.put(copy.deepcopy(random.choice((*words, word.upper(), word.title(), f"{word} ", f"{word}\n", [word]))))
    return True


def broken_rule(random: Random, place: Place) -> bool:
    """The same part drawn anew with no care for the rules between its keys; or a word that a rule speaks of."""
    if "x-kubernetes-validations" not in place.schema:
        return False
    literals = re.findall("'([^']*)'", "".join(rule["rule"] for rule in place.schema["x-kubernetes-validations"]))
    if place.schema.get("type") == "string" and literals:
        place.put(random.choice(literals) + random.choice(("", "", "x")))
        return True
    source = Source(str(random.random()), fixed=False)
    source.dense = random.choice((source.dense, 1.0))
    place.put(source.draw(place.schema | {"nullable": False}, place.path))
    return True


def repeated_item(random: Random, place: Place) -> bool:
    if not isinstance(place.value, list) or not place.value:
        return False
    place.value.append(copy.deepcopy(random.choice(place.value)))
    return True


BAD_KEYS = (
    "", "a b", "ä", "a/b/c", "-a", "a-", "a" * 64, f"{'p' * 254}/a", f"{'p.' * 126}pp/a", "a" * 317, "a" * 318, "a/", "/a",
    "A.B/c", "a_b/c", "a..b/c", "a\n", "a/b\n", "ray.io/x", "llmonray.dev/x", "RAY.IO/x", ".", "..", "a/.", "_", "a" * 63,
    f"{'p' * 253}/{'n' * 63}",
)  # fmt: skip
ENTRIES: tuple[Any, ...] = ("a", "a", "", "a b", "-", "x" * 64, "a\n", "é", "x" * 1025, 1, True, None, [])


def bad_entry(random: Random, place: Place) -> bool:
    """A malformed key or value of labels, annotations and node selectors."""
    if not isinstance(place.value, dict) or not place.schema.get("additionalProperties"):
        return False
    place.value[random.choice(BAD_KEYS)] = copy.deepcopy(random.choice(ENTRIES))
    return True


NAMES: tuple[Any, ...] = (
    "a" * 40, "a" * 41, "a" * 63, "a" * 254, "a.b", "1a", "A", "aB", "a-", "-a", "a_b", "", "a\n", " a", "ä", "１", "a--b",
    "a/b", "..", "a b", "%41", "x", None, 1, True, [], {},
)  # fmt: skip


def wrong_name(random: Random, place: Place) -> bool:
    if place.path == ".metadata":
        place.value["name"] = copy.deepcopy(random.choice(NAMES))
    return place.path == ".metadata"


METADATA: tuple[Object, ...] = (
    {"labels": None}, {"annotations": None}, {"labels": []}, {"labels": "a"}, {"annotations": {"a": "x" * (256 << 10)}},
    {"surplus": 1}, {"Name": "a"}, {"lables": {}}, {"generateName": "a-"}, {"finalizers": ["a"]}, {"finalizers": ["b.c/a"]},
    {"resourceVersion": "1"}, {"uid": "x"}, {"generation": 3}, {"creationTimestamp": "yesterday"}, {"selfLink": "a"},
    {"creationTimestamp": "2026-01-01T00:00:00Z"}, {"ownerReferences": []}, {"ownerReferences": [{}]}, {"managedFields": []},
    {"managedFields": None}, {"deletionTimestamp": None},
)  # fmt: skip


def wrong_metadata(random: Random, place: Place) -> bool:
    """Metadata is no part of the schema: the API server checks it for every kind."""
    if place.path != ".metadata":
        return False
    change = random.choice(METADATA)
    if random.random() < 0.4:
        change = {random.choice(("labels", "annotations")): {random.choice(BAD_KEYS): random.choice(ENTRIES)}}
    place.value.update(copy.deepcopy(change))
    return True


def wrong_root(random: Random, place: Place) -> bool:
    if place.path != "":
        return False
    key = random.choice(("apiVersion", "kind", "metadata", "spec", "status", "Spec", "data"))
    other = ("llmonray.dev/v1", "v1", "FinetuneJobs", "finetunejob", "", None, 1, [], {}, "llmonray.dev/v1alpha1", "FinetuneJob")
    if random.random() < 0.2:
        place.value.pop(key, None)
    else:
        place.value[key] = copy.deepcopy(random.choice(other))
    return True


MISTAKES: tuple[Mistake, ...] = (
    drop_required, unknown_key, misspelt_key, wrong_type, null, beyond_bounds, wrong_number, wrong_length, wrong_text,
    wrong_choice, broken_rule, repeated_item, bad_entry, wrong_name, wrong_metadata, wrong_root,
)  # fmt: skip


def mutate(random: Random, job: Object) -> tuple[str, Object]:
    """A copy with one mistake, all kinds of mistakes and then all places equally likely; and what was done, where."""
    whole = {"": copy.deepcopy(job)}
    by_path: dict[str, list[Place]] = {}
    for place in places(crd_schema(), whole, ""):
        by_path.setdefault(place.path, []).append(place)
    while True:
        mistake = random.choice(MISTAKES)
        for path in random.sample(list(by_path), len(by_path)):
            if mistake(random, random.choice(by_path[path])):
                if not isinstance(whole[""], dict):
                    return mutate(random, job)  # a list or a text is no object at all
                return f"{mistake.__name__} at {path or 'the root'}", whole[""]
