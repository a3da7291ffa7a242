"""``finetune submit`` and ``list``: what is created, waited for and printed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support.builders import NAMESPACE, raw_job
from tests.support.http_server import until
from tests.support.shell import CLUSTER, SUBMISSION, Shell, shell_at

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
BARE = "General: {base_model: gpt2}\nDataset: {train_file: rows.jsonl}\nTraining: {epochs: 3}\n"


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        yield shell


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a manifest, a finetuning YAML, and a folder of both."""
    place = tmp_path / "work"
    (place / "jobs" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(place)
    (place / "job.yaml").write_text(json.dumps(manifest("new")))
    (place / "my_conf.yaml").write_text(BARE)
    (place / "jobs" / "one.yml").write_text(json.dumps(manifest("one")))
    (place / "jobs" / "two.yaml").write_text(BARE)
    (place / "jobs" / "README.md").write_text("# no job")
    (place / "jobs" / "deeper" / "three.json").write_text(json.dumps(manifest("three")))
    return place


def manifest(name: str) -> Object:
    job = raw_job()
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": {"name": name}, "spec": job["spec"]}


async def test_a_manifest_is_created_as_it_is(shell: Shell, folder: Path) -> None:
    assert await shell.run("submit", "-f", "job.yaml") == (0, "finetunejob/new created\n", "")
    assert shell.job("new")["spec"] == manifest("new")["spec"]


async def test_a_finetuning_yaml_is_created_as_convert_would_make_it(shell: Shell, folder: Path) -> None:
    options = ("--set", "Training.epochs=1", "--dataset-claim", "rows", "--name", "mine")
    assert await shell.run("submit", "-f", "my_conf.yaml", *options) == (0, "finetunejob/mine created\n", "")
    spec = shell.job("mine")["spec"]
    assert spec["config"]["Training"] == {"epochs": 1}
    assert spec["dataset"] == {"persistentVolumeClaim": {"claimName": "rows"}}


async def test_values_are_read_as_in_a_manifest(shell: Shell, folder: Path) -> None:
    values = ("Training.learning_rate=1e-5", "General.lora_config={r: 4}", "suspend=true", "General.base_model=10")
    code, _, err = await shell.run("submit", "-f", "job.yaml", *(word for value in values for word in ("--set", value)))
    assert (code, "General.base_model" in err) == (2, True)
    code, _, err = await shell.run("submit", "-f", "job.yaml", *(word for value in values[:3] for word in ("--set", value)))
    assert (code, err) == (0, "")
    spec = shell.job("new")["spec"]
    assert spec["config"]["Training"]["learning_rate"] == 1e-5
    assert spec["config"]["General"]["lora_config"] == {"r": 4}
    assert spec["suspend"] is True


@pytest.mark.parametrize("value", ["Training", "=1", "Training..epochs=1", "a={"])
async def test_a_value_that_is_none_is_named(shell: Shell, folder: Path, value: str) -> None:
    code, out, err = await shell.run("submit", "-f", "job.yaml", "--set", value)
    assert (code, out, shell.writes()) == (2, "", [])
    assert err.startswith(f"--set {value}: ")


async def test_folders_and_several_files_are_read_and_nothing_is_created_if_one_is_wrong(shell: Shell, folder: Path) -> None:
    (folder / "bad.yaml").write_text(json.dumps(manifest("Bad_name")))
    code, _, err = await shell.run("submit", "-f", "jobs", "-f", "bad.yaml")
    assert (code, shell.writes()) == (2, [])
    assert err.startswith("bad.yaml: metadata.name: ")
    assert (await shell.run("submit", "-f", "jobs"))[:2] == (0, "finetunejob/one created\nfinetunejob/two created\n")
    code, out, _ = await shell.run("submit", "-f", "jobs/deeper", "-f", "job.yaml", "-R", "-o", "name")
    assert (code, out.splitlines()) == (0, ["finetunejob.llmonray.dev/three", "finetunejob.llmonray.dev/new"])


async def test_a_dry_run_is_checked_by_the_api_server_and_not_stored(shell: Shell, folder: Path) -> None:
    code, out, _ = await shell.run("submit", "-f", "job.yaml", "--dry-run", "-o", "yaml")
    assert code == 0
    assert YAML(typ="safe").load(out)["metadata"]["name"] == "new"
    assert shell.kube.writes()[0].query["dryRun"] == "All"
    assert shell.kube.created == []


async def test_a_name_that_is_taken_is_told_with_what_to_do(shell: Shell, folder: Path) -> None:
    shell.add("new", phase="Running")
    code, out, err = await shell.run("submit", "-f", "job.yaml")
    assert (code, out) == (1, "")
    assert err.splitlines() == [
        "error: there is a finetunejob/new in namespace team already",
        "  -> give this one another name (--name new-2), or see `finetune status new`",
    ]


async def test_a_wait_tells_what_the_job_waits_for_and_how_it_ends(shell: Shell, folder: Path) -> None:
    waiting = asyncio.create_task(shell.run("submit", "-f", "job.yaml", "--wait"))
    await until(lambda: shell.cluster.watches, "it watches")
    for phase, reason in (("Pending", "ClaimNotFound"), ("Running", "TrainingRunning"), ("Failed", "OutOfMemory")):
        status = {"reason": reason, "message": "memory ran out\nmore"}
        shell.add("new", phase=phase, status=status, metadata=shell.job("new")["metadata"])
    code, out, err = await waiting
    assert (code, out) == (1, "finetunejob/new created\n")
    lines = err.splitlines()
    assert "finetunejob/new: Pending (ClaimNotFound)" in lines
    assert lines[-3] == "error: finetunejob/new has ended as Failed (OutOfMemory): memory ran out"
    assert lines[-2].startswith("  -> The message says what to change")


async def test_a_job_that_is_followed_prints_the_logs_of_its_attempts(shell: Shell, folder: Path) -> None:
    following = asyncio.create_task(shell.run("submit", "-f", "job.yaml", "--follow"))
    gets = f"/apis/llmonray.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs/new"
    await until(lambda: any(seen.path == gets for seen in shell.cluster.seen), "it looks at the job")
    first = {"attempt": 1, "ray": {"cluster": CLUSTER, "submissionId": SUBMISSION}}
    shell.add("new", phase="Provisioning", status=first, metadata=shell.job("new")["metadata"])
    shell.cluster.start_ray(log="step 1\n")
    await until(lambda: shell.cluster.ray.requests, "the first log is read")
    shell.cluster.ray.heads[CLUSTER].logs["second"] = "step 2\n"
    history = {
        "attempt": 1,
        "cluster": CLUSTER,
        "submissionId": SUBMISSION,
        "endTime": "2026-01-02T03:04:05Z",
        "reason": "HeadLost",
    }
    second = {"attempt": 2, "ray": {"cluster": CLUSTER, "submissionId": "second"}, "attemptHistory": [history]}
    shell.add("new", phase="Succeeded", status=second, metadata=shell.job("new")["metadata"])
    code, out, err = await following
    assert (code, out) == (0, "finetunejob/new created\nstep 1\nstep 2\n")
    assert set(err.splitlines()) <= {"finetunejob/new: Pending", "finetunejob/new: Provisioning"}


async def test_a_wait_has_an_end_and_its_own_exit_code(shell: Shell, folder: Path) -> None:
    code, _, err = await shell.run("submit", "-f", "job.yaml", "--wait", "--timeout", "0.3s")
    assert code == 124
    assert "error: finetunejob/new is still Pending after" in err


async def test_jobs_are_listed_as_a_table_and_as_objects(shell: Shell) -> None:
    progress = {"display": "45%", "loss": 1.12649, "etaSeconds": 75}
    status = {"reason": "TrainingRunning", "progress": progress, "ray": {"workers": "2/2"}, "attempt": 1}
    shell.add(phase="Running", status=status, metadata={"creationTimestamp": "2020-01-01T00:00:00Z"})
    other = {"uid": "2", "namespace": "other", "creationTimestamp": "2020-01-01T00:00:00Z"}
    shell.add("évil\x1b[31m", phase="Failed", metadata=other)
    _, out, _ = await shell.run("list")
    head, row = (line.split() for line in out.splitlines())
    assert head == ["NAME", "PHASE", "PROGRESS", "LOSS", "WORKERS", "ATTEMPT", "AGE"]
    assert row[:-1] == ["demo", "Running", "45%", "1.126", "2/2", "1"]
    _, out, _ = await shell.run("get", "-A", "-o", "wide")
    assert "\x1b" not in out
    assert [line.split()[0] for line in out.splitlines()] == ["NAMESPACE", "other", "team"]
    assert "1m15s   TrainingRunning" in out
    _, out, _ = await shell.run("list", "-o", "json")
    assert json.loads(out)["items"] == [shell.job()]
    _, out, _ = await shell.run("get", "demo", "-o", "yaml")
    assert YAML(typ="safe").load(out) == shell.job()
    assert await shell.run("list", "-o", "name") == (0, "finetunejob.llmonray.dev/demo\n", "")


async def test_an_empty_list_says_what_creates_a_job(shell: Shell) -> None:
    told = "There are no FinetuneJobs in namespace team. `finetune submit -f FILE` creates one.\n"
    assert await shell.run("list") == (0, "", told)
    _, out, err = await shell.run("list", "-o", "json")
    assert (json.loads(out), err) == ({"apiVersion": "v1", "kind": "List", "items": []}, "")
