"""The CRD: rendered, bounded, and agreeing with the models and the samples."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.builders import DATA, NAMESPACE, UID, load_yaml, make_job
from tests.support.chart import ROOT

from finetune_operator.api.crd import build_crd, render
from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import FinetuneJob, dump

pytestmark = pytest.mark.sampled(4)

SAMPLES = sorted((ROOT / "config_samples" / "finetunejobs").glob("*.yaml"))
JOBS = sorted((DATA / "jobs").glob("*.yaml"))


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every schema in a schema, with its path."""
    yield path, schema
    for name, inner in schema.get("properties", {}).items():
        yield from nodes(inner, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(inner := schema.get(key), dict):
            yield from nodes(inner, f"{path}[]")


# apiVersion, kind and metadata belong to the API server
BELOW_ROOT = [item for item in nodes(crd_schema()) if item[0].startswith((".spec", ".status"))]


@pytest.mark.parametrize("path", ["crds/finetunejob.yaml", "charts/finetune-operator/files/finetunejob.yaml"])
def test_the_committed_crd_is_the_rendered_one(path: str) -> None:
    assert (ROOT / path).read_text(encoding="utf-8") == render(), "run `make crds`"


def test_yaml_1_1_and_1_2_read_the_same_crd() -> None:
    """kubectl reads YAML 1.1, where a bare `no` is false."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = "1.1"
    assert yaml.load(render()) == YAML(typ="safe", pure=True).load(render())


def test_every_string_list_and_map_has_a_maximum() -> None:
    unbounded = [path for path, node in BELOW_ROOT if not bounded(node)]
    assert unbounded == []


def bounded(node: dict[str, Any]) -> bool:
    match node.get("type"):
        case "string":
            return "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        case "array":
            return "maxItems" in node
        case "object":
            return "properties" in node or "maxProperties" in node
        case None:
            return "enum" in node
    return True


def test_every_number_that_a_user_writes_has_bounds() -> None:
    numbers = [
        (path, node) for path, node in BELOW_ROOT if node.get("type") in {"integer", "number"} and path.startswith(".spec")
    ]
    assert [path for path, node in numbers if not {"minimum", "maximum"} <= node.keys()] == []


def test_every_field_is_explained() -> None:
    silent = [path for path, node in BELOW_ROOT if not path.endswith("[]") and not node.get("description")]
    assert silent == []


def test_nothing_is_left_that_a_structural_schema_may_not_hold() -> None:
    forbidden = {"$ref", "$defs", "anyOf", "oneOf", "allOf", "const", "title", "examples", "default"}
    assert [(path, forbidden & node.keys()) for path, node in BELOW_ROOT if forbidden & node.keys()] == []
    assert [path for path, node in BELOW_ROOT if "properties" in node and "additionalProperties" in node] == []


def test_only_the_yaml_of_llm_on_ray_has_parts_that_nobody_checks() -> None:
    free = [path for path, node in BELOW_ROOT if "x-kubernetes-preserve-unknown-fields" in node]
    assert free
    assert [path for path in free if not path.startswith(".spec.config.")] == []


def test_every_rule_has_words_of_its_own() -> None:
    rules = [(path, rule) for path, node in BELOW_ROOT for rule in node.get("x-kubernetes-validations", ())]
    assert [path for path, rule in rules if set(rule) != {"rule", "message"} or not 20 < len(rule["message"]) < 300] == []


def test_all_of_the_spec_is_immutable_but_what_steers_a_running_job() -> None:
    spec = crd_schema()["properties"]["spec"]
    rules = spec["x-kubernetes-validations"] + crd_schema()["x-kubernetes-validations"]
    held = {match[1] for rule in rules if (match := re.match(r"spec\.(\w+) (is|can be) ", rule["message"]))}
    assert set(spec["properties"]) - held == {
        "retryPolicy",
        "suspend",
        "provisioningTimeoutSeconds",
        "activeDeadlineSeconds",
        "stallTimeoutSeconds",
        "clusterTTLSeconds",
        "ttlSecondsAfterFinished",
    }


def test_the_crd_stays_far_below_the_limits_of_etcd_and_of_kubectl_apply() -> None:
    assert len(render()) < 262_144 / 2
    assert len(json.dumps(build_crd())) < 262_144 / 2, "kubectl apply keeps the object in an annotation"


@pytest.mark.parametrize("path", [*SAMPLES, *JOBS], ids=lambda path: path.stem)
def test_samples_pass_schema_and_models(path: Path) -> None:
    raw = load_yaml(path)
    assert list(violations(crd_schema(), raw)) == []
    raw["metadata"] |= {"namespace": NAMESPACE, "uid": UID}
    job = FinetuneJob.model_validate(raw)
    assert (raw["apiVersion"], raw["kind"]) == ("llmonray.dev/v1alpha1", "FinetuneJob")
    assert job.metadata.name == raw["metadata"]["name"]


def test_there_are_samples() -> None:
    assert SAMPLES


@pytest.mark.parametrize("name", [path.stem for path in JOBS])
def test_what_the_models_read_the_schema_takes_back(name: str) -> None:
    spec = make_job(name).spec
    written = {"metadata": {}, "spec": dump(spec)}
    # models read devices in any case and write them in lower case; the schema's own words are tested against a server
    assert list(violations(crd_schema(), written)) == []


@pytest.mark.parametrize(
    ("spec", "where"),
    [
        ({}, "spec.config: required"),
        ({"config": {}, "output": {}}, "spec.config.General: required"),
        ({"config": {"General": {"base_modle": "x"}}}, "spec.config.General.base_modle: unknown field; did you mean base_model?"),
        ({"config": {"General": {"base_model": "x" * 300}}}, "spec.config.General.base_model: has 300 characters; at most 256"),
        ({"output": {"size": "-1Gi"}}, "spec.output.size: the text '-1Gi' does not match"),
    ],
)
def test_the_schema_names_what_is_wrong(spec: dict[str, Any], where: str) -> None:
    assert any(str(problem).startswith(where) for problem in violations(crd_schema(), {"spec": spec}))


@pytest.mark.parametrize("word", ["no", False])
def test_save_strategy_takes_a_bare_no_of_both_yaml_versions(word: Any) -> None:
    node = dict(nodes(crd_schema()))[".spec.config.General.save_strategy"]
    assert list(violations(node, word)) == []
    assert node["x-kubernetes-preserve-unknown-fields"] is True
    assert list(violations(node, "sometimes"))
