"""Renders the reference of the resource from the models: ``python -m finetune_operator.api.docs FOLDER``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_operator.api.crd import COLUMNS, build_crd
from finetune_operator.api.reasons import ENDED, WAITING, Explanation, Reason
from finetune_operator.constants import API_VERSION, KIND, PLURAL

Schema = dict[str, Any]

_HEAD = "<!-- Rendered by `make docs`; do not edit. -->\n"

_INTRODUCTION = f"""# {KIND}

`apiVersion: {API_VERSION}`, `kind: {KIND}`, `kubectl get {PLURAL}` or `ftj`. The API server itself checks everything below
when the job is applied: types, ranges, and the rules under each table. `finetune validate -f FILE` does the same without a
cluster. What a reason means and what to do about it is in [reasons.md](reasons.md).

Defaults are not written into the object: what you applied is what `kubectl get -o yaml` shows. In `spec` everything but
`cancel`, the deadlines and the times to live is immutable.
"""

_REASONS = """# Reasons

`status.reason` of a FinetuneJob, and the reasons of its conditions: what happened, what the operator did, what you can
do. `status.message` has the particulars. A job that has ended stays so; after fixing the cause, delete it and apply it
again, or give it another name.
"""


def render_reference() -> str:
    """docs/reference/finetunejob.md."""
    root = build_crd()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = [_HEAD, _INTRODUCTION, *_rules(root)]
    for name in ("spec", "status"):
        for path, schema in _objects(root["properties"][name], name):
            parts += [f"\n## {path}\n\n{schema['description']}\n", _table(schema), *_rules(schema)]
    return "\n".join([*parts, _columns()]).rstrip() + "\n"


def render_reasons() -> str:
    """docs/reference/reasons.md."""
    parts = [_HEAD, _REASONS, "## While a job is on its way\n", *(_reason(*item) for item in WAITING.items())]
    return "\n".join([*parts, "## When a job has ended\n", *(_reason(*item) for item in ENDED.items())]).rstrip() + "\n"


def _reason(reason: Reason, text: Explanation) -> str:
    remedy = text.remedy or "Nothing."
    return (
        f"### {reason}\n\n- **What happened:** {text.happened}\n- **What the operator does:** {text.did}\n"
        f"- **What you can do:** {remedy}\n"
    )


def _objects(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    """Every object with properties, before the objects in it."""
    yield path, schema
    for name, inner in schema["properties"].items():
        marks = f"{path}.{name}"
        while "items" in inner:
            inner, marks = inner["items"], f"{marks}[]"  # noqa: PLW2901 - down to what the list holds
        if "properties" in inner:
            yield from _objects(inner, marks)


def _table(schema: Schema) -> str:
    required = schema.get("required", ())
    rows = ["| Field | Type | |", "|---|---|---|"]
    for name, inner in schema["properties"].items():
        must = " **Required.**" if name in required else ""
        text = inner.get("description", "").replace("|", "\\|")
        rows.append(f"| `{name}` | {_type(inner)} | {text}{must} |")
    return "\n".join(rows) + "\n"


def _type(schema: Schema) -> str:
    text = _base_type(schema)
    return f"{text} or null" if schema.get("nullable") else text


def _base_type(schema: Schema) -> str:
    if "enum" in schema:
        return ", ".join(f"`{json.dumps(value).strip(chr(34))}`" for value in schema["enum"])
    match schema.get("type"):
        case "array":
            text = f"list of {_base_type(schema['items'])}, at most {schema['maxItems']}"
        case "object" if "additionalProperties" in schema:
            text = f"map of {_base_type(schema['additionalProperties'])}, at most {schema['maxProperties']}"
        case "integer" | "number" as kind:
            text = " ".join([kind, *_range(schema)])
        case "string":
            text = "time" if schema.get("format") == "date-time" else f"string, at most {schema['maxLength']} characters"
        case other:
            text = str(other)
    return text


def _range(schema: Schema) -> list[str]:
    if "minimum" not in schema:
        return []
    above = "above " if schema.get("exclusiveMinimum") else ""
    below = "below " if schema.get("exclusiveMaximum") else ""
    return [f"from {above}{schema['minimum']} to {below}{schema['maximum']}"]


def _rules(schema: Schema) -> list[str]:
    """Rules between keys: of the object itself, and of single fields."""
    messages = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    for inner in schema.get("properties", {}).values():
        messages += [rule["message"] for rule in inner.get("x-kubernetes-validations", ()) if "properties" not in inner]
    return ["Refused:\n", *(f"- {message}" for message in dict.fromkeys(messages)), ""] if messages else []


def _columns() -> str:
    rows = ["\n## Columns\n", "| `kubectl get` | Field |", "|---|---|"]
    rows += [f"| {name.upper()}{' (`-o wide`)' if wide else ''} | `{path}` |" for name, _, path, wide in COLUMNS]
    return "\n".join(rows)


def main() -> None:
    """Write both documents into the folder that is named."""
    folder = Path(sys.argv[1])
    (folder / "finetunejob.md").write_text(render_reference(), encoding="utf-8")
    (folder / "reasons.md").write_text(render_reasons(), encoding="utf-8")


if __name__ == "__main__":
    main()
