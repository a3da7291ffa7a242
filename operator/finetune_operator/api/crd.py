"""Renders the CustomResourceDefinition from the models: ``python -m finetune_operator.api.crd [FILE …]``."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from ruamel.yaml import YAML
from ruamel.yaml.scalarstring import DoubleQuotedScalarString

from finetune_operator.api.spec import ROOT_RULES
from finetune_operator.api.v1alpha1 import RESUMES_ITSELF, FinetuneJobSpec, FinetuneJobStatus
from finetune_operator.constants import GROUP, KIND, MAX_JOB_NAME, PLURAL, VERSION

Schema = dict[str, Any]

NAME_RULES = [
    {
        "rule": f"size(self.metadata.name) <= {MAX_JOB_NAME}",
        "message": f"metadata.name may have at most {MAX_JOB_NAME} characters: "
        "the names of the Ray cluster and its service are made from it",
    },
    {
        "rule": "self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        "message": "metadata.name must be a DNS-1035 label: lower-case letters, digits and '-', and a letter first",
    },
    {"rule": "!has(self.spec.resumeFrom) || self.spec.resumeFrom != self.metadata.name", "message": RESUMES_ITSELF},
]
"""The messages are static: one that quotes the name exceeds the CEL cost budget a hundred times."""

COLUMNS = [
    ("Phase", "string", ".status.phase", 0),
    ("Progress", "string", ".status.progress.display", 0),
    ("Loss", "number", ".status.progress.loss", 0),
    ("Workers", "string", ".status.ray.workers", 0),
    ("Attempt", "integer", ".status.attempt", 0),
    ("Age", "date", ".metadata.creationTimestamp", 0),
    ("Step", "integer", ".status.progress.step", 1),
    ("ETA", "integer", ".status.progress.etaSeconds", 1),
    ("Reason", "string", ".status.reason", 1),
    ("Cluster", "string", ".status.ray.cluster", 1),
    ("Output", "string", ".status.output.persistentVolumeClaim", 1),
]
"""Printer columns: name, type, path, priority (1: only with ``-o wide``)."""

_DROPPED = ("$defs", "title", "default", "const", "additionalProperties", "propertyNames")


def structural(model: type[BaseModel]) -> Schema:
    """The OpenAPI v3 structural schema of a model: references resolved, unions with null made ``nullable``."""
    schema = model.model_json_schema(by_alias=True, mode="validation")
    return _convert(schema, schema.get("$defs", {}))


def _convert(node: Schema, defs: Schema) -> Schema:
    if "$ref" in node:
        return _convert(defs[node["$ref"].rsplit("/", 1)[-1]], defs) | _description(node)
    if "anyOf" in node:
        return _nullable(node, defs)
    result = {key: value for key, value in node.items() if key not in _DROPPED}
    if "const" in node:
        result["enum"] = [node["const"]]
    for key in ("additionalProperties", "items"):
        if isinstance(inner := node.get(key), dict):
            result[key] = _convert(inner, defs)
    if "properties" in node:
        result["properties"] = {name: _convert(value, defs) for name, value in node["properties"].items()}
    if "description" in result:
        result["description"] = " ".join(result["description"].split()) + _default(node)
    return _numbers(result)


def _description(node: Schema) -> Schema:
    return {"description": " ".join(node["description"].split())} if "description" in node else {}


def _default(node: Schema) -> str:
    """Defaults are documented, not set: a default in the schema would show as drift to a GitOps tool."""
    default = node.get("default")
    if default is None or isinstance(default, dict | list) or "Default:" in node["description"]:
        return ""
    return f" Default: {str(default).lower() if isinstance(default, bool) else default}."


def _nullable(node: Schema, defs: Schema) -> Schema:
    choices = [choice for choice in node["anyOf"] if choice.get("type") != "null"]
    if len(choices) != 1 or len(choices) == len(node["anyOf"]):
        raise ValueError(f"a union that no structural schema can hold: {node}")
    result = _convert(choices[0], defs) | _description(node)
    # the API server finds null in no enum, not even in one that holds it; where it is not allowed, it is dropped
    return result if "enum" in result else result | {"nullable": True}


def _numbers(node: Schema) -> Schema:
    """JSON Schema 2020 writes an exclusive bound as a number, OpenAPI v3.0 as a flag beside the bound."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(node.get(exclusive), int | float):
            node[bound] = node[exclusive]
            node[exclusive] = True
    if node.get("type") == "integer":
        node["format"] = "int64"
    return node


def build_crd() -> Schema:
    """The CustomResourceDefinition of FinetuneJob."""
    root = {
        "type": "object",
        "description": "Finetunes a language model on a Ray cluster of its own and leaves the result on a volume.",
        "required": ["spec"],
        "x-kubernetes-validations": NAME_RULES + ROOT_RULES,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "spec": structural(FinetuneJobSpec),
            "status": structural(FinetuneJobStatus),
        },
    }
    columns = [
        {"name": name, "type": kind, "jsonPath": path} | ({"priority": priority} if priority else {})
        for name, kind, path, priority in COLUMNS
    ]
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{PLURAL}.{GROUP}",
            "annotations": {"helm.sh/resource-policy": "keep"},  # uninstalling the chart must not delete all jobs
        },
        "spec": {
            "group": GROUP,
            "scope": "Namespaced",
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["ftj"],
                "categories": ["all", "finetune"],
            },
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": columns,
                    "schema": {"openAPIV3Schema": root},
                }
            ],
        },
    }


def _quote_yaml11(node: Any) -> Any:
    """Quote the words that YAML 1.1, which kubectl reads, takes for booleans: a bare ``no`` would become false."""
    if isinstance(node, dict):
        return {key: _quote_yaml11(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_quote_yaml11(value) for value in node]
    return DoubleQuotedScalarString(node) if node in {"no", "yes", "on", "off"} and isinstance(node, str) else node


def render() -> str:
    """The CRD as YAML."""
    yaml = YAML()
    yaml.width = 120
    yaml.representer.ignore_aliases = lambda _data: True
    stream = io.StringIO()
    stream.write("# Rendered from operator/finetune_operator/api by `make crds`; do not edit.\n")
    yaml.dump(_quote_yaml11(build_crd()), stream)
    return stream.getvalue()


def main() -> None:
    """Write the CRD to each file named, or to standard output."""
    text = render()
    for name in sys.argv[1:]:
        Path(name).write_text(text, encoding="utf-8")
    if not sys.argv[1:]:
        sys.stdout.write(text)


if __name__ == "__main__":
    main()
