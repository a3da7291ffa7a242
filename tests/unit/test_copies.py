"""``finetune upload`` and ``download``: every byte arrives, whatever is cut off; a wrong checksum is refused."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, UID
from tests.support.shell import Shell, shell_at

from finetune_client.transfer.api import MODEL_FILES

pytestmark = pytest.mark.sampled(8)

Object = dict[str, Any]
FOLDER = f"demo-{UID}"
CLAIM = "demo-1f0c3-output"
BIG = 9 * 1024 * 1024 + 17
"""Three parts."""


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        for claim in (CLAIM, "data"):
            folder = tmp_path / "claims" / claim
            folder.mkdir(parents=True)
            shell.cluster.helpers.claims[claim] = folder
            shell.kube.put("persistentvolumeclaims", {"metadata": {"name": claim, "namespace": NAMESPACE}})
        monkeypatch.chdir(tmp_path)
        yield shell


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def finished(shell: Shell, **changes: bytes) -> dict[str, bytes]:
    """A job whose result lies on its claim; gives its files."""
    files = {"adapter_model.safetensors": random.Random(1).randbytes(BIG), "tokenizer/vocab.json": b"{}", "empty.txt": b""}
    files = changes | files
    folder = shell.cluster.helpers.claims[CLAIM] / FOLDER
    entries = []
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        entries.append({"path": name, "sizeBytes": len(data), "sha256": digest(data)})
    manifest = {
        "version": 1,
        "format": "peft-adapter",
        "baseModel": "gpt2",
        "files": entries,
        "createdAt": "2026-01-02T03:04:05Z",
    }
    text = json.dumps(manifest).encode()
    (folder / "manifest.json").write_bytes(text)
    (folder / "report.html").write_bytes(b"<p>good")
    output = {"persistentVolumeClaim": CLAIM, "path": FOLDER, "format": "peft-adapter", "manifestSHA256": digest(text)}
    shell.add(phase="Succeeded", status={"output": output, "defaults": DEFAULTS, "attempt": 1})
    return files | {"manifest.json": text, "report.html": b"<p>good"}


DEFAULTS = {
    "image": "registry.example/trainer:1", "headCpu": "1", "headMemory": "4Gi", "workerMemory": "8Gi",
    "checkpointEverySteps": 0, "checkpointKeep": 2,
}  # fmt: skip


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


async def test_a_result_is_copied_and_the_helper_pod_goes(shell: Shell, tmp_path: Path) -> None:
    files = finished(shell)
    code, out, err = await shell.run("download", "demo", "model")
    assert (code, err) == (0, "")
    assert out == "The result of finetunejob/demo is in model; its files are those of its manifest.\n"
    assert tree(tmp_path / "model") == files
    (pod,) = shell.cluster.helpers.made
    assert shell.kube.objects["pods"] == {}
    container = pod["spec"]["containers"][0]
    assert container["image"] == "registry.example/trainer:1"
    assert container["volumeMounts"] == [{"name": "claim", "mountPath": "/claim", "readOnly": True}]
    assert pod["spec"]["automountServiceAccountToken"] is False


async def test_what_is_there_already_is_not_copied_again(shell: Shell, tmp_path: Path) -> None:
    files = finished(shell)
    target = tmp_path / "model"
    target.mkdir()
    name = "adapter_model.safetensors"
    (target / f"{name}.finetune-partial").write_bytes(files[name][:8_000_000])
    await shell.run("download", "demo", "model")
    first = shell.cluster.helpers.requests
    assert tree(target) == files
    await shell.run("download", "demo", "model")
    assert shell.cluster.helpers.requests - first < first
    assert tree(target) == files


@pytest.mark.sampled(5)
@pytest.mark.parametrize("seed", range(10))
async def test_both_ways_survive_connections_that_are_cut(shell: Shell, tmp_path: Path, seed: int) -> None:
    files = finished(shell)
    dice = random.Random(seed)
    cuts = {number: dice.choice(("before", "after", "body")) for number in dice.sample(range(1, 16), 3)}
    shell.cluster.helpers.cuts = cuts
    code, _, err = await shell.run("download", "demo", "model")
    assert (code, err) == (0, "")
    assert tree(tmp_path / "model") == files
    shell.cluster.helpers.cuts = {shell.cluster.helpers.requests + number: kind for number, kind in cuts.items()}
    code, _, err = await shell.run("upload", "model", "data:", "--image", "python:3.11")
    assert (code, err) == (0, "")
    assert tree(shell.cluster.helpers.claims["data"]) == {f"model/{name}": data for name, data in files.items()}


async def test_a_part_that_was_damaged_on_the_way_is_copied_again(shell: Shell, tmp_path: Path) -> None:
    files = finished(shell)
    shell.cluster.helpers.damage = b"XXXX"
    assert (await shell.run("download", "demo", "model"))[0] == 0
    assert tree(tmp_path / "model") == files


async def test_a_file_that_was_damaged_on_the_claim_is_refused(shell: Shell, tmp_path: Path) -> None:
    finished(shell)
    (shell.cluster.helpers.claims[CLAIM] / FOLDER / "tokenizer" / "vocab.json").write_bytes(b"[]")
    code, out, err = await shell.run("download", "demo", "model")
    assert (code, out) == (1, "")
    assert f"error: {FOLDER}/tokenizer/vocab.json has another checksum than its manifest says" in err
    assert not (tmp_path / "model" / "manifest.json").exists()
    assert not (tmp_path / "model" / "tokenizer" / "vocab.json").exists()
    assert shell.kube.objects["pods"] == {}


async def test_a_result_of_which_weights_are_missing_does_not_look_like_a_model(shell: Shell, tmp_path: Path) -> None:
    """`finetune generate` takes a folder with one of these files as it is."""
    finished(shell, **dict.fromkeys(MODEL_FILES, b"{}"))
    (shell.cluster.helpers.claims[CLAIM] / FOLDER / "adapter_model.safetensors").unlink()
    assert (await shell.run("download", "demo", "model"))[0] == 1
    assert not {*MODEL_FILES} & {*tree(tmp_path / "model")}


async def test_a_manifest_that_is_not_the_jobs_is_refused(shell: Shell, tmp_path: Path) -> None:
    finished(shell)
    path = shell.cluster.helpers.claims[CLAIM] / FOLDER / "manifest.json"
    path.write_text(path.read_text().replace("gpt2", "evil"))
    code, _, err = await shell.run("download", "demo", "model")
    assert code == 1
    assert "its checksum differs from status.output.manifestSHA256" in err
    assert not (tmp_path / "model").exists()


async def test_a_manifest_that_names_files_elsewhere_writes_nothing_there(shell: Shell, tmp_path: Path) -> None:
    finished(shell, **{"../../escaped": b"x"})
    code, _, err = await shell.run("download", "demo", "deep/model")
    assert code == 1
    assert "outside of the folder" in err
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("phase", ["Running", "Failed"])
async def test_a_job_without_a_result_is_told(shell: Shell, phase: str) -> None:
    shell.add(phase=phase, status={"output": {"persistentVolumeClaim": CLAIM, "path": FOLDER}})
    code, _, err = await shell.run("download", "demo", "model")
    assert code == 1
    assert err.startswith(f"error: finetunejob/demo has no complete result ({phase})\n  -> `finetune status demo`")
    assert shell.cluster.helpers.made == []


async def test_files_and_folders_go_to_a_folder_of_the_claim(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "deep" / "w.bin").write_bytes(b"123")
    code, out, err = await shell.run("upload", "rows.jsonl", "model", "data:in/put", "--image", "python:3.11")
    assert (code, out, err) == (0, "data:in/put/rows.jsonl\ndata:in/put/model/deep/w.bin\n", "")
    assert tree(shell.cluster.helpers.claims["data"]) == {"in/put/rows.jsonl": b"{}\n", "in/put/model/deep/w.bin": b"123"}


async def test_two_files_that_would_have_one_name_are_refused_before_anything_is_copied(shell: Shell, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(folder)
    code, out, err = await shell.run("upload", "a/rows.jsonl", "b/rows.jsonl", "new:", "--image", "t:1", "--create", "1Gi")
    assert (code, out) == (1, "")
    assert err == (
        "error: a/rows.jsonl and b/rows.jsonl would both be rows.jsonl on the claim\n"
        "  -> give one of them another name, or copy it to another folder: CLAIM:FOLDER\n"
    )
    assert shell.writes() == []


async def test_a_path_that_leaves_the_claim_is_refused(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    code, _, err = await shell.run("upload", "rows.jsonl", "data:../..", "--image", "python:3.11")
    assert (code, "the path leaves the claim" in err) == (1, True)


async def test_a_claim_that_is_not_there_is_told_or_made(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    code, _, err = await shell.run("upload", "rows.jsonl", "new:", "--image", "python:3.11")
    assert (code, err) == (1, "error: there is no claim new in namespace team\n  -> --create SIZE, as --create 10Gi, makes it\n")
    shell.cluster.helpers.claims["new"] = shell.cluster.helpers.claims["data"]
    code, _, err = await shell.run("upload", "rows.jsonl", "new:", "--image", "python:3.11", "--create", "1Gi")
    assert (code, err) == (0, "")
    claim = shell.kube.get("persistentvolumeclaims", (NAMESPACE, "new")) or {}
    assert claim["spec"] == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}


async def test_a_pod_that_does_not_start_is_told_in_the_words_of_the_cluster(shell: Shell, tmp_path: Path) -> None:
    finished(shell)
    state = {"state": {"terminated": {"reason": "Error", "message": "python: not found"}}}
    shell.cluster.helpers.never_ready = {"phase": "Failed", "containerStatuses": [state]}
    code, _, err = await shell.run("download", "demo", "model")
    assert code == 1
    assert f"the helper pod for the claim {CLAIM} does not start: Error python: not found" in err
    assert shell.kube.objects["pods"] == {}


async def test_an_image_is_asked_for_where_none_is_known(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    code, _, err = await shell.run("upload", "rows.jsonl", "data:")
    assert (code, "name it with --image" in err) == (1, True)
    shell.add(phase="Running", status={"defaults": DEFAULTS})
    assert (await shell.run("upload", "rows.jsonl", "data:"))[0] == 0
    assert shell.cluster.helpers.made[-1]["spec"]["containers"][0]["image"] == "registry.example/trainer:1"


@pytest.mark.parametrize("arguments", [("nowhere.jsonl", "data:"), ("rows.jsonl", ":x")])
async def test_wrong_arguments_are_told(shell: Shell, tmp_path: Path, arguments: tuple[str, str]) -> None:
    (tmp_path / "rows.jsonl").write_text("{}\n")
    code, _, err = await shell.run("upload", *arguments)
    assert (code, err.count("\n")) == (1, 2)
    assert shell.cluster.helpers.made == []
