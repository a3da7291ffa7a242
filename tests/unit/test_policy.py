"""What an administrator forbids, as the operator holds it. `tests/api/test_policy.py` shows the API server the same."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import load_yaml, make_job, raw_job
from tests.support.chart import ROOT
from tests.support.policy_cases import DANGEROUS, DEFAULT_CASES, HARMLESS, NULLS, SET_CASES, WIDE, Case, env

from finetune_operator.api.checks import broken_rules, refusals
from finetune_operator.api.policy import Policy
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.api.variables import REFUSED, refusal_of

SAMPLES = sorted((ROOT / "config_samples" / "finetunejobs").rglob("*.yaml"))


def refused(spec: dict[str, Any], policy: dict[str, Any] | None = None) -> list[str]:
    return refusals(make_job(spec=spec), Policy.model_validate(policy or {}))


@pytest.mark.parametrize("case", [*DEFAULT_CASES, *SET_CASES], ids=lambda case: case.name)
def test_a_way_around_the_policy_is_closed_and_its_neighbour_is_open(case: Case) -> None:
    (refusal,) = refused(case.refused, case.policy)
    assert f"policy.{case.key}" in refusal
    assert case.shown in refusal
    assert refused(case.accepted, case.policy) == []


@pytest.mark.parametrize("case", SET_CASES, ids=lambda case: case.name)
def test_a_namespace_has_its_own_limits_and_no_other_has_them(case: Case) -> None:
    elsewhere = {"namespaces": {"elsewhere": case.policy}}
    here = {"namespaces": {"team": case.policy}}
    assert refused(case.refused, here)
    assert refused(case.accepted, here) == []
    assert refused(case.refused, elsewhere) == refused(case.refused)


@pytest.mark.parametrize("name", DANGEROUS)
def test_a_dangerous_variable_is_refused_by_name_whatever_is_allowed(name: str) -> None:
    """By the CRD's rules and by the operator, which meets jobs that are older than the rules."""
    assert broken_rules(raw_job(spec=env(name))["spec"])
    (refusal,) = refused(env(name), WIDE)
    assert refusal.startswith(f"workers.env: {name} is refused; ")
    assert refused(env(name), {"allowedVariables": [name]})


@pytest.mark.parametrize("spec", HARMLESS, ids=lambda spec: spec["workers"]["env"][0]["name"])
def test_what_ordinary_users_set_is_allowed_by_default(spec: dict[str, Any]) -> None:
    assert broken_rules(raw_job(spec=spec)["spec"]) == []
    assert refused(spec) == []


@pytest.mark.parametrize(
    "name", sorted({name for kind in REFUSED for name in (*kind.names, *kind.except_for)} | {"PYTHON", "XDG"})
)
def test_the_rule_in_cel_and_the_check_in_python_refuse_the_same_names(name: str) -> None:
    for other in (name, f"{name}_X", f"X_{name}", name.lower(), name[:-1]):
        assert bool(broken_rules(raw_job(spec=env(other))["spec"])) == (refusal_of(other) is not None), other


def test_the_token_of_a_ray_cluster_is_no_token_of_the_hub() -> None:
    reference = {"model": {"tokenSecretRef": {"name": "hf-demo", "key": "auth_token"}}}
    (found,) = broken_rules(raw_job(spec=reference)["spec"])
    assert "auth_token is that of a Ray cluster's token" in found


def test_null_asks_for_nothing() -> None:
    raw = raw_job()
    assert refusals(FinetuneJob.model_validate(raw | {"spec": raw["spec"] | NULLS}), Policy()) == []


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_the_samples_are_allowed_by_default(path: Any) -> None:
    raw = load_yaml(path)
    raw["metadata"] = {"namespace": "team", "uid": "u"} | raw["metadata"]
    assert refusals(FinetuneJob.model_validate(raw), Policy()) == []


@pytest.mark.parametrize("pattern", ["A*B", "**", "*A"])
def test_a_star_stands_at_the_end_only(pattern: str) -> None:
    with pytest.raises(ValueError, match="pattern"):
        Policy.model_validate({"allowedVariables": [pattern]})
