"""The snippets of docs/gitops.md, extracted and run: each phase has its health in Argo CD and in Flux."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from lupa import lua51  # Argo CD's Lua is 5.1
from ruamel.yaml import YAML

from finetune_operator.api.crd import build_crd
from finetune_operator.api.phases import TERMINAL, Phase

PAGE = Path(__file__).parents[2] / "docs" / "gitops.md"
KEY = "resource.customizations.health.llmonray.dev_FinetuneJob"
ENDS = {Phase.SUCCEEDED: "Healthy", Phase.FAILED: "Degraded", Phase.CANCELLED: "Degraded", Phase.SUSPENDED: "Suspended"}
"""Health of the phases that do not lead on by themselves; all others are on their way."""


def snippet(kind: str) -> dict[str, Any]:
    """The manifest of a kind, parsed."""
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [item for item in (YAML(typ="safe", pure=True).load(block) for block in blocks) if item["kind"] == kind]
    return dict(found)


def argo_health(status: dict[str, Any] | None, generation: int = 3) -> tuple[str, str]:
    """What the Lua of the page says of a job: (status, message)."""
    runtime = lua51.LuaRuntime(unpack_returned_tuples=True)
    job = {"metadata": {"generation": generation}} | ({} if status is None else {"status": status})
    runtime.globals().obj = runtime.table_from(job, recursive=True)
    health = runtime.execute(snippet("ConfigMap")["data"][KEY])
    return health.status, health.message


def flux_phases(expression: str) -> set[str]:
    """The phases for which an expression is true; a missing phase must not make it fail."""
    guard, _, rest = expression.partition(" && ")
    assert guard == "has(status.phase)"
    match = re.fullmatch(r"status\.phase (?:in \[(?P<some>.*)\]|== (?P<one>'\w+'))", rest)
    assert match is not None
    return {phase.strip().strip("'") for phase in (match["some"] or match["one"]).split(",")}


@pytest.mark.parametrize("phase", Phase)
def test_argo_cd_knows_every_phase(phase: Phase) -> None:
    assert argo_health({"phase": str(phase), "observedGeneration": 3})[0] == ENDS.get(phase, "Progressing")


def test_the_table_for_argo_cd_names_every_phase_and_nothing_else() -> None:
    """A phase that is left out would be on its way for ever."""
    named = re.findall(r'^ +(\w+) = "\w+",$', snippet("ConfigMap")["data"][KEY], re.MULTILINE)
    assert sorted(named) == sorted(map(str, Phase))


@pytest.mark.parametrize(
    "status",
    [
        None,
        {},
        {"observedGeneration": 3},
        {"phase": "Succeeded", "observedGeneration": 2},
        {"phase": "Failed", "observedGeneration": 2, "message": "old"},
        {"phase": "Succeeded"},
        {"phase": "OfANewerOperator", "observedGeneration": 3},
    ],
    ids=["no status", "empty", "no phase", "succeeded before a change", "failed before a change", "no generation", "unknown"],
)
def test_argo_cd_waits_while_the_operator_has_not_spoken(status: dict[str, Any] | None) -> None:
    health, message = argo_health(status)
    assert health == "Progressing"
    assert message


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"reason": "OutOfMemory", "message": "rank 1: no memory"}, "OutOfMemory: rank 1: no memory"),
        ({"reason": "OutOfMemory", "message": ""}, "OutOfMemory"),
        ({"reason": "OutOfMemory"}, "OutOfMemory"),
        ({}, "Failed"),
    ],
)
def test_argo_cd_shows_why_a_job_failed(said: dict[str, str], message: str) -> None:
    assert argo_health({"phase": "Failed", "observedGeneration": 3} | said) == ("Degraded", message)


def test_flux_sees_the_same_ends() -> None:
    (check,) = snippet("Kustomization")["spec"]["healthCheckExprs"]
    crd = build_crd()["spec"]
    assert (check["apiVersion"], check["kind"]) == (f"{crd['group']}/{crd['versions'][0]['name']}", crd["names"]["kind"])
    assert flux_phases(check["current"]) == {phase for phase, health in ENDS.items() if health == "Healthy"}
    assert flux_phases(check["failed"]) == {phase for phase, health in ENDS.items() if health == "Degraded"}
    assert flux_phases(check["current"]) | flux_phases(check["failed"]) == set(TERMINAL)


def test_argo_cds_key_names_the_kind() -> None:
    crd = build_crd()["spec"]
    assert list(snippet("ConfigMap")["data"]) == [f"resource.customizations.health.{crd['group']}_{crd['names']['kind']}"]
