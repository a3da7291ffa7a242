"""The first hour's way through a cluster: a model is uploaded, the sample for kind submitted, the result downloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.e2e.conftest import Release
from tests.support.cluster import ROOT
from tests.support.kubectl import Kubectl

NAME, CLAIM = "first-hour", "first-hour-models"
SAMPLE = ROOT / "config_samples" / "finetunejobs" / "kind.yaml"

Finetune = Callable[..., str]


@pytest.fixture
def finetune(jobs: Kubectl) -> Iterator[Finetune]:
    """The command, with the login of the namespace; gives what it prints."""

    def run(*arguments: str | Path) -> str:
        command = [sys.executable, "-m", "finetune_client.cli", *map(str, arguments), "-n", jobs.namespace]
        env = os.environ | {"KUBECONFIG": str(jobs.kubeconfig)}
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=540)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    yield run
    jobs.run("delete", "finetunejob", NAME, "--ignore-not-found")
    jobs.run("delete", "pvc", CLAIM, "--ignore-not-found", "--wait=false")


def test_the_sample_for_kind_trains_an_uploaded_model_within_its_memory(
    finetune: Finetune, release: Release, model: Path, tmp_path: Path
) -> None:
    """Its head and worker have the memory that the sample says. There is no hub here, so the model is on a claim."""
    finetune("upload", model, f"{CLAIM}:", "--create", "1Gi", "--image", release.trainer_image)
    claim = [f"model.persistentVolumeClaim.claimName={CLAIM}", f"model.persistentVolumeClaim.subPath={model.name}"]
    less = ["Training.max_train_steps=12", "Training.resources_per_worker.CPU=0.3", "head.cpu=100m"]
    settings = [word for setting in (*claim, *less) for word in ("--set", setting)]
    finetune("submit", "-f", SAMPLE, "--name", NAME, *settings, "--wait", "--timeout", "8m")
    assert f"{NAME}: Succeeded" in finetune("status", NAME)
    finetune("download", NAME, tmp_path / "result", "--image", release.trainer_image)
    assert (tmp_path / "result" / "adapter_model.safetensors").is_file()
    assert (tmp_path / "result" / "report.html").is_file()
