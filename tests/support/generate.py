"""FinetuneJobs drawn from the CRD's own schema, so that a new field is covered without a change here.

Every value is a function of a seed: ``draw_job("7:valid:12")`` is the same object on every machine.
"""

from __future__ import annotations

import ast
import math
import re
import string
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

from tests.support.patterns import draw_match

from finetune_operator.api.schema import crd_schema
from finetune_operator.constants import MAX_JOB_NAME

Schema = dict[str, Any]
Object = dict[str, Any]

MAX_ITEMS_WEIGHT = 400
"""A list or map is drawn at its greatest length only if it then has at most this many leaves."""

FLOATS = (0.0, 1.0, 9.0, 10.5, 1e-05, 0.1 + 0.2, 5e-324, 2.0**53 + 2, 123456.789, 1e22, 1e308, -1e308, 1.7976931348623157e308)
INTEGERS = (0, 1, 2, 9, 10, 42, 1000)
ODD = "äß€漢🎉 ‍́\x00\x07\t\n\r\x85\u2028\ufeff\U0010ffff\"'\\{}[]:#&*!|>%@`~?,$(;"
"""Characters that quoting, YAML, shells and fixed-width encodings stumble over."""
WORDS = ("no", "null", "true", "0", "1e3", "~", "-", "gpt2", "a b", "{{x}}", "${HOME}", "%s", "- a", "# a", "'", "2026-01-02")
LABELS = (
    "team", "a", "A-b_c.9", "x" * 63, "example.com/team", "a.b.c/d", f"{'p' * 253}/n", f"{'p' * 63}.example/{'n' * 63}",
    "kubernetes.io/hostname", "ray", "ray.iox/a", "0",
)  # fmt: skip


class Source:
    """Draws values of a schema.

    `fixed`: rules between keys are made to hold. `dense`: how likely an optional key is.
    """

    def __init__(self, seed: str, *, fixed: bool = True) -> None:
        self.random = Random(seed)
        self.fixed = fixed
        self.dense = self.random.choice((0.05, 0.3, 0.7, 1.0))
        self.long_allowed = True

    def draw(self, schema: Schema, path: str = "") -> Any:
        """A value that the schema takes; None now and then where it may be."""
        if schema.get("nullable") and self.random.random() < 0.08:
            return None
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        if "properties" in schema or schema.get("additionalProperties"):
            value: Any = self._object(schema, path)
        else:
            draw: Callable[[Schema, str], Any] = getattr(self, f"_{schema['type']}")
            value = draw(schema, path)
        fix = FIXES.get(path.rpartition(".")[2]) if self.fixed and path.startswith(".spec") else None
        return fix(self.random, value) if fix else value

    def _object(self, schema: Schema, path: str) -> Object:
        if inner := schema.get("additionalProperties"):
            count = self._length(0, schema["maxProperties"], weight(inner))
            return {self._key(): self.draw(inner, f"{path}[]") for _ in range(count)}
        if schema.get("x-kubernetes-preserve-unknown-fields"):
            return {self._key(): self.random.choice([1, "a", None, [], {"b": [0.5]}]) for _ in range(self.random.randrange(4))}
        required = schema.get("required", ())
        names = [name for name in schema.get("properties", {}) if name in required or self.random.random() < self.dense]
        return {name: self.draw(schema["properties"][name], f"{path}.{name}") for name in names}

    def _array(self, schema: Schema, path: str) -> list[Any]:
        items, outer = schema["items"], self.long_allowed
        count = self._length(schema.get("minItems", 0), schema["maxItems"], weight(items))
        self.long_allowed = outer and count <= 3
        values = [self.draw(items, f"{path}[]") for _ in range(count)]
        self.long_allowed = outer
        if keys := schema.get("x-kubernetes-list-map-keys"):
            values = list({tuple(value[key] for key in keys): value for value in values}.values())
        return values

    def _length(self, least: int, most: int, each: int) -> int:
        if self.long_allowed and each * most <= MAX_ITEMS_WEIGHT and self.random.random() < 0.1:
            return most
        return min(most, max(least, self.random.choice((0, 1, 1, 2, 3))))

    def _key(self) -> str:
        return self.random.choice(LABELS) if self.random.random() < 0.3 else "k" + self.ascii(self.random.randrange(12))

    def ascii(self, length: int) -> str:
        return "".join(self.random.choices(string.ascii_lowercase + string.digits, k=length))

    def _string(self, schema: Schema, _path: str) -> str:
        if schema.get("format") == "date-time":
            time = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.random.randrange(2**37))
            return time.strftime("%Y-%m-%dT%H:%M:%SZ")
        rules = [rule["rule"] for rule in schema.get("x-kubernetes-validations", ())]
        words = [word for rule in rules for word in allowed_words(rule)]
        if words and (self.fixed or self.random.random() < 0.8):
            return self._any_case(self.random.choice(words))
        least, most = schema.get("minLength", 0), schema.get("maxLength", 64)
        usual = [self.random.randint(least, max(least, min(most, 24))) for _ in range(5)]
        length = self.random.choice((least, most, min(most, least + 1), *usual))
        if pattern := schema.get("pattern"):
            return draw_match(self.random, pattern, least, most, length)
        return self._text(least, most, length)

    def _text(self, least: int, most: int, length: int) -> str:
        kind = self.random.random()
        if kind < 0.2:
            words = [word for word in WORDS if least <= len(word) <= most]
            return self.random.choice(words) if words else self.ascii(length)
        return "".join(self.random.choices(ODD, k=length)) if kind < 0.4 else self.ascii(length)

    def _any_case(self, word: str) -> str:
        return self.random.choice((word, word.lower(), word.upper(), word.title(), word.swapcase()))

    def _integer(self, schema: Schema, _path: str) -> int:
        low, high = bounds(schema)
        between = self.random.randint(low, high)
        return int(self.random.choice((low, high, between, *_within((*INTEGERS, low + 1, high - 1), low, high))))

    def _number(self, schema: Schema, _path: str) -> float:
        low, high = bounds(schema)
        between = self.random.uniform(max(low, -1e6), min(high, 1e6))
        return self.random.choice((low, high, between, *_within((*FLOATS, *INTEGERS), low, high)))

    def _boolean(self, _schema: Schema, _path: str) -> bool:
        return self.random.random() < 0.5


def bounds(schema: Schema) -> tuple[Any, Any]:
    """Least and greatest value of a number or an integer, bounds that are excluded already taken off."""
    if schema["type"] == "integer":
        low, high = schema.get("minimum", -(2**63)), schema.get("maximum", 2**63 - 1)
        return low + bool(schema.get("exclusiveMinimum")), high - bool(schema.get("exclusiveMaximum"))
    low, high = float(schema.get("minimum", min(FLOATS))), float(schema.get("maximum", max(FLOATS)))
    low = math.nextafter(low, math.inf) if schema.get("exclusiveMinimum") else low
    return low, math.nextafter(high, -math.inf) if schema.get("exclusiveMaximum") else high


def _within(values: tuple[float, ...], low: float, high: float) -> list[float]:
    return [value for value in values if low <= value <= high]


def weight(schema: Schema) -> int:
    """Leaves of a value with one item in each list."""
    below = [schema[key] for key in ("items", "additionalProperties") if schema.get(key)]
    inner = [*schema.get("properties", {}).values(), *below]
    return sum(map(weight, inner)) if inner else 1


def allowed_words(rule: str) -> list[str]:
    """The words of a rule that lists them, as ``self.lowerAscii() in ['cpu', 'gpu']``; the empty one of ``size(self) == 0``."""
    if rule == "size(self) == 0":
        return [""]
    found = re.fullmatch(r"self\.(?:lower|upper)Ascii\(\) in (\[.*])", rule)
    return ast.literal_eval(found[1]) if found else []


def fix_training(random: Random, training: Object) -> Object:
    """Device, mode and GPUs that agree, and supervised finetuning."""
    training.pop("beta", None)
    training |= {"use_dpo": False} if "use_dpo" in training else {}
    device, mode = str(training.get("device", "cpu")).lower(), str(training.get("accelerate_mode", ""))
    prefix = mode.upper().partition("_")[0]
    if "_" in mode and prefix.lower() != device:
        training["accelerate_mode"] = mode.partition("_")[2]
        if "device" in training and random.random() < 0.5:
            training["device"], training["accelerate_mode"], device = prefix, mode, prefix.lower()
    resources = training.get("resources_per_worker") or {}
    if device == "gpu":
        training["resources_per_worker"] = resources | {"GPU": resources.get("GPU") or random.choice((1, 64))}
    elif resources.get("GPU"):
        training["resources_per_worker"] = resources | {"GPU": 0}
    return training


def fix_output(random: Random, output: Object) -> Object:
    """A claim that exists, or what goes with one that is made."""
    claim, size = output.pop("persistentVolumeClaim", None), output.get("size")
    if claim and (not size or random.random() < 0.5):
        return {"persistentVolumeClaim": claim} | ({"deleteWithJob": False} if random.random() < 0.2 else {})
    return output | {"size": size or "10Gi"}


def fix_claim(_random: Random, claim: Object) -> Object:
    """A folder inside the volume."""
    if "subPath" in claim:
        claim["subPath"] = "/".join("_" * len(part) if part in {".", ".."} else part for part in claim["subPath"].split("/"))
    return claim


def without(*keys: str, beside: str) -> Callable[[Random, Object], Object]:
    """Either the one key or the others."""

    def fix(random: Random, value: Object) -> Object:
        keep_one = random.random() < 0.5
        dropped = (keys if keep_one else (beside,)) if beside in value else ()
        return {key: item for key, item in value.items() if key not in dropped}

    return fix


def fix_dataset(random: Random, dataset: Object) -> Object:
    """One place for the files, and what goes with the kind of their address."""
    dataset = without("configMap", beside="persistentVolumeClaim")(random, dataset)
    uri = dataset.get("uri") or ""
    dropped = {"configMap"} if uri else {"uri", "sha256", "tokenSecretRef"}
    dropped |= {"sha256"} if uri.startswith("hf://") or uri.endswith("/") else set()
    if uri.startswith("http://"):
        dropped = (dropped | {"tokenSecretRef"}) - {"sha256"}
        dataset["sha256"] = "0" * 64
        dataset["uri"] = uri.rstrip("/")
    return {key: value for key, value in dataset.items() if key not in dropped}


def fix_model(random: Random, model: Object) -> Object:
    """From the hub, from a claim, or from an address."""
    model = without("revision", "cache", beside="persistentVolumeClaim")(random, model)
    dropped = {"revision", "cache"} if model.get("uri") else {"uri"}
    return {key: value for key, value in model.items() if key not in dropped}


def fix_toleration(_random: Random, toleration: Object) -> Object:
    """A key, or Exists; no value with Exists; seconds with NoExecute only."""
    if not toleration.get("key"):
        toleration["operator"] = "Exists"
    if toleration.get("operator") == "Exists":
        toleration.pop("value", None)
    if toleration.get("tolerationSeconds") is not None:
        toleration["effect"] = "NoExecute"
    return {key: value for key, value in toleration.items() if key != "tolerationSeconds" or value is not None}


def fix_requirement(random: Random, requirement: Object) -> Object:
    """Values, unless the operator takes none."""
    if requirement["operator"] in {"Exists", "DoesNotExist"}:
        requirement.pop("values", None)
    elif not requirement.get("values"):
        requirement["values"] = [str(random.randrange(99))]
    return requirement


def fix_spec(_random: Random, spec: Object) -> Object:
    """No accelerator without a GPU, 8 bits only where they may be, and data files inside their volume."""
    training, dataset = spec["config"].get("Training") or {}, spec["config"]["Dataset"]
    if str(training.get("device")).lower() != "gpu":
        spec.pop("accelerator", None)
    general, mode = spec["config"]["General"], str(training.get("accelerate_mode") or "")
    if str(training.get("device")).lower() != "gpu" or mode.upper().endswith("FSDP") or not general.get("lora_config"):
        general.pop("frozen_dtype", None)
    for name in ("train_file", "validation_file"):
        if dataset.get(name):
            dataset[name] = "r" + dataset[name][1:].replace("..", "._")
    return spec


FIXES: dict[str, Callable[[Random, Any], Any]] = {
    "spec": fix_spec,
    "Training": fix_training,
    "dataset": fix_dataset,
    "model": fix_model,
    "output": fix_output,
    "persistentVolumeClaim": fix_claim,
    "tolerations[]": fix_toleration,
    "matchExpressions[]": fix_requirement,
    "matchFields[]": fix_requirement,
}
"""Last part of a path → what makes the rules (CEL) of its schema hold, which a draw knows nothing of."""


def draw_job(seed: str) -> Object:
    """A FinetuneJob that the API server should take."""
    source = Source(seed)
    job = {
        "apiVersion": "llmonray.dev/v1alpha1",
        "kind": "FinetuneJob",
        "metadata": _metadata(source),
        "spec": source.draw(crd_schema()["properties"]["spec"], ".spec"),
    }
    if source.random.random() < 0.05:
        job["status"] = source.draw(crd_schema()["properties"]["status"], ".status")
    return job


def _metadata(source: Source) -> Object:
    length = source.random.choice((1, 2, 20, MAX_JOB_NAME - 1, MAX_JOB_NAME))
    metadata: Object = {"name": draw_match(source.random, "^[a-z]([-a-z0-9]*[a-z0-9])?$", 1, MAX_JOB_NAME, length)}
    if source.random.random() < 0.2:
        metadata["labels"] = {source.random.choice(LABELS): source.random.choice(("", "a", "x" * 63))}
        metadata["annotations"] = {source.random.choice(LABELS).lower(): "".join(source.random.choices(ODD, k=50))}
    if source.random.random() < 0.1:
        metadata["creationTimestamp"] = None
    return metadata


def draw_spec(seed: str) -> Object:
    """A spec that the API server should take."""
    spec: Object = draw_job(seed)["spec"]
    return spec


def draw_status(seed: str) -> Object:
    """A status that the schema takes."""
    status: Object = Source(seed).draw(crd_schema()["properties"]["status"], ".status")
    return status


def nodes(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every schema below a schema with its path, items of lists and maps as ``[]``."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            yield from nodes(inner, f"{path}[]")


def leaves(schema: Schema, path: str = "") -> set[str]:
    """Paths of the schemas that hold no others."""
    return {path for path, node in nodes(schema, path) if not {"properties", "items", "additionalProperties"} & node.keys()}


def used(value: Any, path: str = "") -> Iterator[str]:
    """Paths of the values that are set in an object, written as `nodes` writes them, once under each way to read a key."""
    if value is None:
        return
    yield path
    if isinstance(value, list):
        for item in value:
            yield from used(item, f"{path}[]")
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from used(item, f"{path}.{name}")
            yield from used(item, f"{path}[]")
