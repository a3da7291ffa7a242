"""``finetune suspend``, ``resume``, ``cancel`` and ``retry`` with a kubeconfig, against a real API server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.support.client_process import finetune
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object

COMMANDS = ("suspend", "resume", "cancel", "retry")


def spec(api: Kubectl, name: str) -> Object:
    return (api.get("finetunejob", name) or {})["spec"]


def ended(api: Kubectl, name: str, phase: str = "Failed") -> None:
    status = json.dumps({"status": {"phase": phase}})
    api.run("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", status)


def test_suspend_resume_and_cancel_change_the_stored_job(api: Kubectl) -> None:
    api.apply(finetune_job("asked"))
    before = spec(api, "asked")
    for command, expected in (
        ("suspend", {"suspend": True}),
        ("resume", {"suspend": False}),
        ("cancel", {"suspend": False, "cancel": True}),
    ):
        assert finetune(api, command, "asked")[::2] == (0, "")
        assert spec(api, "asked") == before | expected


def test_a_retry_is_taken_by_the_api_server_as_often_as_it_is_asked_for(api: Kubectl) -> None:
    name = "b" * 40
    job = finetune_job(name, suspend=True)
    job["metadata"]["labels"] = {"team": "nlp", "app.kubernetes.io/managed-by": "Helm"}
    api.apply(job)
    ended(api, name)
    before = spec(api, name)
    first, second = "b" * 37 + "-r1", "b" * 37 + "-r2"
    assert finetune(api, "retry", name) == (0, f"finetunejob/{first} created; it takes up {name}\n", "")
    made = api.get("finetunejob", first) or {}
    assert made["spec"] == {key: value for key, value in before.items() if key != "suspend"} | {"resumeFrom": name}
    assert made["metadata"]["labels"] == {"team": "nlp"}
    assert "annotations" not in made["metadata"]
    assert finetune(api, "retry", first)[0] == 1
    ended(api, first, "Cancelled")
    assert finetune(api, "retry", first) == (0, f"finetunejob/{second} created; it takes up {first}\n", "")
    assert spec(api, second)["resumeFrom"] == first
    assert spec(api, name) == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_missing_job_is_named(api: Kubectl, command: str) -> None:
    code, out, err = finetune(api, command, "nobody")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: there is no finetunejob/nobody in namespace {api.namespace}\n  -> ")


@pytest.mark.parametrize("command", COMMANDS)
def test_somebody_without_rights_is_told_so(api: Kubectl, command: str, tmp_path: Path) -> None:
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "nobody"}}
    api.apply(account)
    config = json.loads(api.run("config", "view", "--raw", "--minify", "--flatten", "-o", "json").stdout)
    config["users"][0]["user"] = {"token": api.run("create", "token", "nobody").stdout.strip()}
    kubeconfig = tmp_path / "kubeconfig"
    kubeconfig.write_text(json.dumps(config))
    code, out, err = finetune(api, command, "any", kubeconfig=kubeconfig)
    assert (code, out) == (1, "")
    assert "is forbidden: " in err
    assert f'system:serviceaccount:{api.namespace}:nobody" cannot get resource "finetunejobs"' in err
