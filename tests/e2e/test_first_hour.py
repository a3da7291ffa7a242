"""The first hour's way through a cluster: a model is uploaded, the sample for kind submitted, the result downloaded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Release
from tests.support import client_process
from tests.support.cluster import ROOT, job_status
from tests.support.kubectl import Kubectl

NAME, CLAIM = "first-hour", "first-hour-models"
SAMPLE = ROOT / "config_samples" / "finetunejobs" / "kind.yaml"

Finetune = Callable[..., str]


@pytest.fixture
def finetune(jobs: Kubectl) -> Iterator[Finetune]:
    """The command, with the login of the namespace; gives what it prints."""

    def run(*arguments: str | Path) -> str:
        code, out, err = client_process.finetune(jobs, *map(str, arguments), timeout=540)
        assert code == 0, out + err
        return out

    yield run
    jobs.run("delete", "finetunejob", NAME, "--ignore-not-found")
    jobs.run("delete", "pvc", CLAIM, "--ignore-not-found", "--wait=false")


def test_the_sample_for_kind_trains_an_uploaded_model_within_its_memory(
    finetune: Finetune, jobs: Kubectl, release: Release, model: Path, tmp_path: Path
) -> None:
    """Its head and worker have the memory that the sample says. There is no hub here, so the model is on a claim."""
    assert "!!" not in finetune("doctor")
    finetune("upload", model, f"{CLAIM}:", "--create", "1Gi")
    claim = [f"model.persistentVolumeClaim.claimName={CLAIM}", f"model.persistentVolumeClaim.subPath={model.name}"]
    less = ["Training.max_train_steps=12", "Training.resources_per_worker.CPU=0.3", "head.cpu=100m"]
    settings = [word for setting in (*claim, *less) for word in ("--set", setting)]
    assert "step 12/12" in finetune("submit", "-f", SAMPLE, "--name", NAME, *settings, "--follow", "--timeout", "8m")
    assert f"{NAME}: Succeeded" in finetune("status", NAME)
    result = tmp_path / "result"
    finetune("download", NAME, result)
    manifest = (result / "manifest.json").read_bytes()
    assert hashlib.sha256(manifest).hexdigest() == job_status(jobs, NAME)["output"]["manifestSHA256"]
    files = {entry["path"]: entry["sha256"] for entry in json.loads(manifest)["files"]}
    assert "adapter_model.safetensors" in files
    assert all(hashlib.sha256((result / path).read_bytes()).hexdigest() == digest for path, digest in files.items())
    assert (result / "report.html").is_file()
    assert not jobs.list("pods", "llmonray.dev/copies-files")
