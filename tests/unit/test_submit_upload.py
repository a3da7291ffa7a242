"""``finetune submit --upload``: the rows are on the claim before there is a job, and the job trains on them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, raw_job
from tests.support.shell import Shell, shell_at

from finetune_client import AsyncFinetuneClient

Object = dict[str, Any]
ROWS = b'{"instruction": "a", "response": "b"}\n'
POD_MADE = f"POST /api/v1/namespaces/{NAMESPACE}/pods"
JOB_MADE = f"POST /apis/llmonray.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs"


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        (tmp_path / "claim").mkdir()
        shell.cluster.helpers.claims["data"] = tmp_path / "claim"
        monkeypatch.chdir(tmp_path)
        (tmp_path / "mine.jsonl").write_bytes(ROWS)
        (tmp_path / "job.yaml").write_text(json.dumps(manifest()))
        yield shell


def manifest(**dataset: Any) -> Object:
    job = raw_job()
    spec = job["spec"] | {"dataset": dataset or {"persistentVolumeClaim": {"claimName": "data", "subPath": "in/put"}}}
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": {"name": "new"}, "spec": spec | {"image": "t:1"}}


def claim_is_there(shell: Shell) -> None:
    shell.kube.put("persistentvolumeclaims", {"metadata": {"name": "data", "namespace": NAMESPACE}})


async def test_the_rows_are_on_the_claim_before_the_job_is_made_and_the_job_trains_on_them(shell: Shell, tmp_path: Path) -> None:
    claim_is_there(shell)
    code, out, err = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl")
    assert (code, out, err) == (0, "finetunejob/new created\n", "mine.jsonl is copied to data:in/put/mine.jsonl\n")
    assert (tmp_path / "claim" / "in" / "put" / "mine.jsonl").read_bytes() == ROWS
    assert shell.job("new")["spec"]["config"]["Dataset"]["train_file"] == "mine.jsonl"
    made = [line for line in shell.writes() if line.startswith("POST")]
    assert made == [JOB_MADE, POD_MADE, JOB_MADE]
    checked, created = (seen for seen in shell.kube.writes() if seen.path.endswith("/finetunejobs"))
    assert (checked.query.get("dryRun"), created.query.get("dryRun")) == ("All", None)
    assert shell.cluster.helpers.made[0]["spec"]["containers"][0]["image"] == "t:1"
    assert shell.kube.objects["pods"] == {}


async def test_the_claim_is_made_if_it_is_not_there_and_that_is_asked_for(shell: Shell, tmp_path: Path) -> None:
    code, out, err = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl")
    assert (code, out) == (1, "")
    assert err == "error: there is no claim data in namespace team\n  -> --create SIZE, as --create 10Gi, makes it\n"
    assert shell.kube.objects["finetunejobs"] == {}
    code, _, _ = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl", "--create", "1Gi")
    assert code == 0
    claim = shell.kube.get("persistentvolumeclaims", (NAMESPACE, "data")) or {}
    assert claim["spec"]["resources"]["requests"] == {"storage": "1Gi"}


async def test_a_finetuning_yaml_and_a_folder_of_rows(shell: Shell, tmp_path: Path) -> None:
    claim_is_there(shell)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_bytes(ROWS)
    (tmp_path / "conf.yaml").write_text("General: {base_model: gpt2}\nDataset: {train_file: there.jsonl}\n")
    options = ("--dataset-claim", "data", "--image", "t:2", "--upload", "rows/")
    code, _, err = await shell.run("submit", "-f", "conf.yaml", *options)
    assert (code, err) == (0, "rows/ is copied to data:rows\n")
    assert (tmp_path / "claim" / "rows" / "train.jsonl").read_bytes() == ROWS
    assert shell.job("conf")["spec"]["config"]["Dataset"]["train_file"] == "rows"


@pytest.mark.parametrize("real", ["rows-05.jsonl", "rows-05"])
async def test_rows_behind_a_link_have_the_name_of_the_link(shell: Shell, tmp_path: Path, real: str) -> None:
    claim_is_there(shell)
    file = tmp_path / real if real.endswith(".jsonl") else tmp_path / real / "train.jsonl"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(ROWS)
    (tmp_path / "latest").symlink_to(real)
    code, _, err = await shell.run("submit", "-f", "job.yaml", "--upload", "latest")
    assert (code, err) == (0, "latest is copied to data:in/put/latest\n")
    assert shell.job("new")["spec"]["config"]["Dataset"]["train_file"] == "latest"
    there = tmp_path / "claim" / "in" / "put" / "latest"
    assert (there if there.is_file() else there / "train.jsonl").read_bytes() == ROWS


@pytest.mark.parametrize("typed", [".", "../rows"])
async def test_rows_in_the_folder_where_the_user_is_have_its_name(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, typed: str
) -> None:
    claim_is_there(shell)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "train.jsonl").write_bytes(ROWS)
    monkeypatch.chdir(tmp_path / "rows")
    code, _, err = await shell.run("submit", "-f", "../job.yaml", "--upload", typed)
    assert (code, err) == (0, f"{typed} is copied to data:in/put/rows\n")
    assert (tmp_path / "claim" / "in" / "put" / "rows" / "train.jsonl").read_bytes() == ROWS
    assert shell.job("new")["spec"]["config"]["Dataset"]["train_file"] == "rows"


async def test_a_train_file_that_is_set_is_kept(shell: Shell) -> None:
    claim_is_there(shell)
    options = ("--upload", "mine.jsonl", "--set", "Dataset.train_file=other.jsonl")
    assert (await shell.run("submit", "-f", "job.yaml", *options))[0] == 0
    assert shell.job("new")["spec"]["config"]["Dataset"]["train_file"] == "other.jsonl"


async def test_nothing_is_copied_for_a_job_that_is_refused(shell: Shell) -> None:
    claim_is_there(shell)
    shell.add("new", phase="Running")
    code, _, err = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl")
    assert (code, err.count("\n")) == (1, 2)
    assert err.startswith("error: there is a finetunejob/new in namespace team already\n  -> give this one another name")
    code, _, err = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl", "--set", "Training.epochs=no")
    assert code == 2
    assert shell.cluster.helpers.made == []


async def test_a_check_copies_nothing(shell: Shell, tmp_path: Path) -> None:
    code, out, err = await shell.run("submit", "-f", "job.yaml", "--upload", "mine.jsonl", "--dry-run")
    assert (code, out) == (0, "finetunejob/new is valid (nothing was created)\n")
    assert err == "mine.jsonl would be copied to the claim data (nothing was copied)\n"
    assert list((tmp_path / "claim").iterdir()) == []


@pytest.mark.parametrize(
    ("dataset", "options", "says"),
    [
        (
            {"configMap": {"name": "rows"}},
            ("--upload", "mine.jsonl"),
            "the job names a ConfigMap for its data\n  -> name one: --set",
        ),
        ({}, ("--upload", "nowhere.jsonl"), "there is no file nowhere.jsonl here\n  -> --upload takes"),
        ({}, ("--create", "1Gi"), "--create makes the claim for --upload, which is not there\n"),
    ],
)
async def test_what_cannot_be_copied_is_told_before_anything_is_made(
    shell: Shell, tmp_path: Path, dataset: Object, options: tuple[str, ...], says: str
) -> None:
    claim_is_there(shell)
    (tmp_path / "job.yaml").write_text(json.dumps(manifest(**dataset)))
    code, out, err = await shell.run("submit", "-f", "job.yaml", *options)
    assert (code, out, says in err) == (1, "", True), err
    assert shell.writes() == []


async def test_rows_are_for_one_job(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "more.yaml").write_text(json.dumps(manifest() | {"metadata": {"name": "more"}}))
    code, _, err = await shell.run("submit", "-f", "job.yaml", "-f", "more.yaml", "--upload", "mine.jsonl")
    assert (code, err) == (1, "error: --upload is for one job, and there are 2\n  -> leave it out\n")
    assert shell.writes() == []


async def test_the_client_copies_rows_too(shell: Shell, tmp_path: Path) -> None:
    client = AsyncFinetuneClient()
    job = await client.submit(manifest(), upload="mine.jsonl", create_claim="1Gi")
    assert job.raw["spec"]["config"]["Dataset"]["train_file"] == "mine.jsonl"
    assert (tmp_path / "claim" / "in" / "put" / "mine.jsonl").read_bytes() == ROWS
