"""``finetune suspend``, ``resume``, ``cancel`` and ``retry`` against an API server on loopback."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE
from tests.support.http_server import Canned, running
from tests.support.shell import Shell, login, shell_at

from finetune_client.retries import retry_name, stem_and_number
from finetune_operator.api.v1alpha1 import FinetuneJob, Phase

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
ENDED = ("Failed", "Cancelled", "Succeeded")


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        yield shell


@pytest.mark.parametrize(
    ("command", "before", "after", "says"),
    [
        ("suspend", {}, {"suspend": True}, "will be suspended"),
        ("resume", {"suspend": True}, {"suspend": False}, "will resume"),
        ("cancel", {"suspend": True}, {"suspend": True, "cancel": True}, "will be cancelled"),
    ],
)
@pytest.mark.parametrize("phase", [*sorted({*Phase} - {*ENDED}), None])
async def test_a_command_changes_one_key_of_the_spec(
    shell: Shell, command: str, before: Object, after: Object, says: str, phase: str | None
) -> None:
    old = shell.add(phase=phase, spec=before)
    assert await shell.run(command, "demo") == (0, f"finetunejob/demo {says}\n", "")
    assert shell.job()["spec"] == old["spec"] | after
    (write,) = shell.kube.writes()
    assert write.headers["Content-Type"] == "application/merge-patch+json"
    assert json.loads(write.text) == {"spec": {key: after[key] for key in after if after[key] != before.get(key)}}
    assert write.query["fieldManager"] == "finetune"


@pytest.mark.parametrize("command", ["suspend", "resume", "cancel"])
@pytest.mark.parametrize("phase", ENDED)
async def test_what_has_ended_is_left_alone(shell: Shell, command: str, phase: str) -> None:
    shell.add(phase=phase)
    code, out, err = await shell.run(command, "demo")
    assert (code, out, shell.writes()) == (1, "", [])
    assert f"finetunejob/demo has ended already ({phase}), which is final" in err
    assert ("`finetune retry demo`" in err) == (phase != "Succeeded")


@pytest.mark.parametrize("phase", ["Failed", "Cancelled"])
async def test_a_retry_is_a_new_job_that_names_the_old(shell: Shell, phase: str) -> None:
    mine = {"team": "nlp", "kueue.x-k8s.io/queue-name": "train", "app.kubernetes.io/name": "demo"}
    tools = {"app.kubernetes.io/instance": "app", "app.kubernetes.io/managed-by": "Helm", "argocd.argoproj.io/instance": "app",
             "kustomize.toolkit.fluxcd.io/name": "app"}  # fmt: skip
    notes = {"example.com/ticket": "4711"}
    applied = {"kubectl.kubernetes.io/last-applied-configuration": "{}", "argocd.argoproj.io/tracking-id": "app:x",
               "meta.helm.sh/release-name": "r"}  # fmt: skip
    metadata = {"labels": mine | tools, "annotations": notes | applied, "finalizers": ["example.com/f"]}
    old = shell.add(phase=phase, spec={"suspend": True, "cancel": True}, metadata=metadata)
    before = copy.deepcopy(shell.job())
    code, out, err = await shell.run("retry", "demo")
    assert (code, out, err) == (0, "finetunejob/demo-r1 created; it takes up demo\n", "")
    assert shell.writes() == [f"POST /apis/llmonray.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"]
    sent = json.loads(shell.kube.writes()[0].text)
    assert sent["metadata"] == {"name": "demo-r1", "namespace": NAMESPACE, "labels": mine, "annotations": notes}
    rest = {key: value for key, value in old["spec"].items() if key not in {"suspend", "cancel"}}
    assert sent["spec"] == rest | {"resumeFrom": "demo"}
    assert sent.keys() == {"apiVersion", "kind", "metadata", "spec"}
    assert shell.kube.writes()[0].query["fieldValidation"] == "Strict"
    assert shell.job() == before
    FinetuneJob.model_validate(shell.job("demo-r1"))


async def test_the_first_free_number_is_taken(shell: Shell) -> None:
    for name, source in (("demo", None), ("demo-r1", "demo"), ("demo-r2", "demo-r1"), ("demo-r4", "demo")):
        shell.add(name, spec={"resumeFrom": source})
    assert (await shell.run("retry", "demo"))[1] == "finetunejob/demo-r3 created; it takes up demo\n"
    assert (await shell.run("retry", "demo-r2"))[1] == "finetunejob/demo-r5 created; it takes up demo-r2\n"
    assert shell.job("demo-r5")["spec"]["resumeFrom"] == "demo-r2"


@pytest.mark.parametrize(
    ("name", "source", "following"),
    [
        ("demo", None, "demo-r1"),
        ("demo-r1", "demo", "demo-r2"),
        ("demo-r9", "demo-r8", "demo-r10"),
        ("lora-r8", None, "lora-r8-r1"),
        ("lora-r8", "other", "lora-r8-r1"),
        ("lora-r8-r1", "lora-r8", "lora-r8-r2"),
        ("demo-r0", "demo", "demo-r0-r1"),
        ("a" * 40, None, "a" * 37 + "-r1"),
        ("a" * 37 + "-r1", "a" * 40, "a" * 37 + "-r2"),
        ("a" * 37 + "-r9", "a" * 40, "a" * 36 + "-r10"),
        ("a" * 36 + "-bcd", None, "a" * 36 + "-r1"),
    ],
)
def test_names_of_retries(name: str, source: str | None, following: str) -> None:
    assert retry_name(*stem_and_number(name, source)) == following


@pytest.mark.parametrize("phase", [*sorted({*Phase} - {*ENDED}), None])
async def test_what_has_not_ended_is_not_retried(shell: Shell, phase: str | None) -> None:
    shell.add(phase=phase)
    code, _, err = await shell.run("retry", "demo")
    assert (code, shell.writes()) == (1, [])
    assert (
        f"finetunejob/demo has not ended ({phase or 'Pending'})\n  -> `finetune suspend demo` and `finetune resume demo`" in err
    )


async def test_what_has_succeeded_is_not_retried(shell: Shell) -> None:
    shell.add(phase="Succeeded")
    code, _, err = await shell.run("retry", "demo")
    assert (code, shell.writes()) == (1, [])
    assert "finetunejob/demo has succeeded: there is nothing to retry" in err


@pytest.mark.parametrize("command", ["suspend", "resume", "cancel", "retry"])
async def test_a_job_that_is_not_there_is_named_with_its_namespace(shell: Shell, command: str) -> None:
    shell.add()
    for options, namespace in (((), "elsewhere"), (("-n", "third"), "third")):
        code, out, err = await shell.run(command, "demo", "--context", "home", *options)
        hint = "  -> `finetune list` shows all jobs (there are none)\n"
        assert (code, out, err) == (1, "", f"error: there is no finetunejob/demo in namespace {namespace}\n{hint}")


@pytest.mark.parametrize("command", ["suspend", "retry"])
async def test_a_refusal_is_told_in_the_words_of_the_api_server(shell: Shell, command: str) -> None:
    shell.add(phase="Running" if command == "suspend" else "Failed")
    method = "PATCH" if command == "suspend" else "POST"
    shell.kube.refusals[method, "finetunejobs"] = (403, "Forbidden", 'User "me" cannot do that')
    code, out, err = await shell.run(command, "demo")
    assert (code, out) == (1, "")
    assert err.startswith('error: the API server says: User "me" cannot do that\n  -> ask the cluster\'s administrator')
    assert len(shell.writes()) == 1


async def test_a_cluster_without_the_kind_is_told_apart_from_a_missing_job(shell: Shell) -> None:
    shell.kube.missing.add("finetunejobs")
    code, _, err = await shell.run("cancel", "demo")
    assert code == 1
    assert "does not know FinetuneJobs: its CRD is not installed there" in err


@pytest.mark.parametrize("server", [Canned(reset=True), None], ids=["resets", "nobody listens"])
async def test_a_server_that_does_not_answer_is_named(shell: Shell, tmp_path: Path, server: Canned | None) -> None:
    async with running(server or Canned()) as url:
        login(tmp_path, url)
        if server is not None:
            code, _, err = await shell.run("suspend", "demo")
    if server is None:
        code, _, err = await shell.run("suspend", "demo")
    assert code == 1
    assert err.startswith(f"error: the API server at {url} does not answer: ")
    assert err.count("\n") == 2


async def test_no_kubeconfig_and_an_unknown_context(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    code, _, err = await shell.run("suspend", "demo", "--context", "nowhere")
    assert code == 1
    assert "nowhere" in err
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    code, _, err = await shell.run("suspend", "demo")
    assert code == 1
    assert err.startswith("error: no cluster to talk to: ")


def test_the_kubernetes_client_is_imported_by_those_who_need_it_only() -> None:
    code = "import sys, finetune_client.cli; sys.exit('kubernetes' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
