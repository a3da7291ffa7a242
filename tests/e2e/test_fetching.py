"""Rows that a job names by their address: a pod fetches them before there is a Ray cluster, and what it keeps is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import pytest
from tests.e2e.conftest import SAMPLE_ROWS, Release
from tests.support.cluster import job_status, removed
from tests.support.jobs import claim, finetune_job, tool_pod
from tests.support.kubectl import Kubectl, Object, wait_until, watching

SERVER, PORT, CLAIM = "files", 8000, "fetched-rows"
SHA256 = hashlib.sha256(SAMPLE_ROWS.read_bytes()).hexdigest()
SMALL = {"Training__num_training_workers": 1, "Training__max_train_steps": 4}


@pytest.fixture(scope="module")
def address(jobs: Kubectl, release: Release) -> Iterator[str]:
    """Where the namespace has the rows: served over HTTP by a pod of the test, from the claim `data`."""
    command = ["python3", "-m", "http.server", str(PORT), "--directory", "/srv"]
    pod = tool_pod(SERVER, release.trainer_image, command, {"/srv": "data"})
    pod["metadata"]["labels"] = {"app": SERVER}
    pod["spec"]["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": PORT}, "periodSeconds": 1}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": SERVER},
        "spec": {"selector": {"app": SERVER}, "ports": [{"port": PORT}]},
    }
    jobs.apply(pod, service, claim(CLAIM))
    jobs.run("wait", "--for=condition=Ready", f"pod/{SERVER}", "--timeout=240s")
    yield f"http://{SERVER}.{jobs.namespace}.svc:{PORT}/rows.jsonl"
    jobs.run("delete", f"pod/{SERVER}", f"service/{SERVER}", f"pvc/{CLAIM}", "--ignore-not-found", "--wait=false")


def run(jobs: Kubectl, name: str, uri: str, sha256: str = SHA256) -> Object:
    """The status with which a job ends whose rows are at an address."""
    dataset: dict[str, Any] = {"uri": uri, "sha256": sha256, "persistentVolumeClaim": {"claimName": CLAIM}}
    jobs.apply(finetune_job(name, **SMALL, dataset=dataset))
    wait_until("the job to end", lambda: job_status(jobs, name).get("phase") in {"Succeeded", "Failed"})
    return job_status(jobs, name)


def test_rows_are_fetched_once_and_two_jobs_train_on_them(jobs: Kubectl, address: str) -> None:
    with removed(jobs, "fetch-first"), removed(jobs, "fetch-second"), watching(jobs, "finetunejobs") as watch:
        first = run(jobs, "fetch-first", address)
        assert first["phase"] == "Succeeded", first["message"]
        dataset = first["fetch"]["dataset"]
        assert (dataset["files"], dataset["sizeBytes"]) == (1, SAMPLE_ROWS.stat().st_size)
        assert [status for status in watch.statuses() if status.get("phase") == "Pending" and "fetch" in status]
        second = run(jobs, "fetch-second", address)
        assert second["phase"] == "Succeeded", second["message"]
        assert second["fetch"]["dataset"]["version"] == dataset["version"]
        assert not [pod for pod in jobs.list("pods") if "-fetch-" in pod["metadata"]["name"]]


@pytest.mark.parametrize(
    ("path", "sha256", "reason"),
    [("rows.jsonl", "0" * 64, "ChecksumMismatch"), ("none.jsonl", SHA256, "DatasetNotFound")],
    ids=["another digest", "no such file"],
)
def test_what_cannot_be_fetched_ends_the_job_before_it_has_a_cluster(
    jobs: Kubectl, address: str, path: str, sha256: str, reason: str
) -> None:
    name = f"fetch-{reason.lower()}"
    with removed(jobs, name), watching(jobs, "rayclusters", labelSelector=f"llmonray.dev/finetunejob={name}") as clusters:
        status = run(jobs, name, address.replace("rows.jsonl", path), sha256)
        assert (status["phase"], status["reason"]) == ("Failed", reason), status["message"]
        assert path in status["message"]
        assert not clusters.statuses()
