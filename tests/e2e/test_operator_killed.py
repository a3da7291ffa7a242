"""The operator dies without a word, once while it provisions and once while a job runs."""

from __future__ import annotations

import base64
import subprocess

import pytest
from tests.e2e.conftest import Release
from tests.support import cluster
from tests.support.cluster import applied, ended, job_status, step_of
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until, watching

NAME = "survivor"
STEPS = 300


@pytest.mark.exclusive
def test_one_cluster_one_submission_and_success(jobs: Kubectl, release: Release) -> None:
    with (
        watching(jobs, "finetunejobs", fieldSelector=f"metadata.name={NAME}") as watch,
        watching(jobs, "rayclusters", labelSelector=f"llmonray.dev/finetunejob={NAME}") as clusters,
        applied(jobs, finetune_job(NAME, Training__max_train_steps=STEPS)),
    ):
        wait_until("Provisioning", lambda: job_status(jobs, NAME).get("phase") in ("Provisioning", "Running"))
        _kill(release)
        wait_until("progress", lambda: step_of(jobs, NAME))
        _kill(release)
        submissions = wait_until("the dashboard", lambda: _submissions(jobs))
        status = wait_until("the end", lambda: ended(jobs, NAME))
    assert status["phase"] == "Succeeded", status["message"]
    assert [item["submission_id"] for item in submissions] == [status["ray"]["submissionId"]]
    assert len({state["metadata"]["uid"] for state in clusters.states}) == 1
    assert watch.phases() == ["Pending", "Provisioning", "Running", "Succeeded"]
    assert status["attempt"] == 1
    assert status["progress"]["step"] == STEPS


def _kill(release: Release) -> None:
    """SIGKILL to the operator's process; wait until another one has taken its place."""
    system = release.kubectl
    pod = _operator(system)
    before = pod["status"]["containerStatuses"][0]["containerID"]
    if cluster.harness("mode")[0] == "source":
        container = before.rpartition("/")[2]
        command = [
            "ctr",
            "-a",
            "/run/finetune-cluster/containerd.sock",
            "-n",
            "k8s.io",
            "task",
            "kill",
            "-s",
            "SIGKILL",
            container,
        ]
        subprocess.run(command, check=True, timeout=30)
    else:
        system.run("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force")

    def replaced() -> bool:
        status = _operator(system)["status"].get("containerStatuses", [{}])[0]
        return bool(status.get("ready")) and status.get("containerID") != before

    wait_until("the operator to be back", replaced)


def _operator(system: Kubectl) -> Object:
    def running() -> Object | None:
        pods = system.list("pods", "app.kubernetes.io/name=finetune-operator")
        return next((pod for pod in pods if "deletionTimestamp" not in pod["metadata"]), None)

    return wait_until("an operator pod", running)


def _submissions(jobs: Kubectl) -> list[Object]:
    """Every job that the Ray cluster knows."""
    job = jobs.get("finetunejob", NAME)
    assert job is not None
    (secret,) = jobs.list("secrets", f"llmonray.dev/finetunejob-uid={job['metadata']['uid']}")
    token = base64.b64decode(secret["data"]["auth_token"]).decode()
    found = jobs.proxy(f"{job['status']['ray']['cluster']}-head-svc", "/api/jobs/", token)
    return [item for item in found if item["type"] == "SUBMISSION"]
