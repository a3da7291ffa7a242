"""Runs that are killed or suspended go on from their newest checkpoint, and learn the same as one that was left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.e2e.conftest import Release
from tests.support import cluster
from tests.support.cluster import applied, change_spec, ended, job_status
from tests.support.jobs import finetune_job, tool_pod
from tests.support.kubectl import Kubectl, Object, after, wait_until, watching

STEPS = 160
EVERY = 20

KILL_DRIVER = """
import os, signal
for pid in filter(str.isdigit, os.listdir("/proc")):
    words = open(f"/proc/{pid}/cmdline").read().split("\\0")
    if words[1:3] == ["-m", "finetune_trainer"]:
        os.kill(int(pid), signal.SIGKILL)
"""


def job(name: str) -> Object:
    """Dropout is on: a resumed run is equal only if its randomness is."""
    policy = {"checkpoint": {"everySteps": EVERY, "keep": 2}, "retryPolicy": {"maxAttempts": 3, "backoffSeconds": 1}}
    return finetune_job(name, Training__max_train_steps=STEPS, **policy)


def losses(jobs: Kubectl, release: Release, status: Object) -> dict[int, float]:
    """Loss of every step, from the record on the output claim."""
    output = status["output"]
    path = f"/output/{output['path']}/logs/metrics.jsonl"
    pod = tool_pod("losses", release.trainer_image, ["cat", path], {"/output": output["persistentVolumeClaim"]})
    records = [json.loads(line) for line in cluster.run_to_end(jobs, pod).splitlines() if line.startswith("{")]
    return {record["step"]: record["loss"] for record in records if "loss" in record}


@pytest.fixture(scope="module")
def undisturbed(jobs: Kubectl, release: Release) -> dict[int, float]:
    """The losses of a run that nobody disturbs."""
    with applied(jobs, job("undisturbed")):
        status = wait_until("the end", lambda: ended(jobs, "undisturbed"))
        assert status["phase"] == "Succeeded", status["message"]
        assert status["attempt"] == 1
        return losses(jobs, release, status)


def checkpointed(jobs: Kubectl, name: str) -> int:
    """Step of the newest checkpoint that the status tells of; 0 as long as there is none."""
    return int((job_status(jobs, name).get("checkpoint") or {}).get("step", 0))


def equal(found: dict[int, float], expected: dict[int, float]) -> bool:
    return found.keys() == expected.keys() and all(abs(found[step] - expected[step]) <= 1e-5 for step in expected)


def pods(jobs: Kubectl, name: str, kind: str) -> list[str]:
    label = f"llmonray.dev/finetunejob={name},ray.io/node-type={kind}"
    return [pod["metadata"]["name"] for pod in jobs.list("pods", label)]


def test_a_run_goes_on_after_its_worker_was_killed(jobs: Kubectl, release: Release, undisturbed: dict[int, float]) -> None:
    with applied(jobs, job("lost-worker")):
        wait_until("a checkpoint", lambda: checkpointed(jobs, "lost-worker"))
        jobs.run("delete", "pod", pods(jobs, "lost-worker", "worker")[0], "--grace-period=0", "--force")
        status = wait_until("the end", lambda: ended(jobs, "lost-worker"))
        assert status["phase"] == "Succeeded", status["message"]
        assert (status["progress"].get("restarts", 0), status["attempt"]) in {(1, 1), (0, 2)}, status
        assert equal(losses(jobs, release, status), undisturbed)


@pytest.mark.parametrize("victim", ["head", "driver"])
def test_a_run_goes_on_after_head_or_driver_was_killed(
    jobs: Kubectl, release: Release, undisturbed: dict[int, float], victim: str
) -> None:
    name = f"lost-{victim}"
    with (
        watching(jobs, "finetunejobs", fieldSelector=f"metadata.name={name}") as watch,
        watching(jobs, "rayclusters", labelSelector=f"llmonray.dev/finetunejob={name}") as clusters,
        applied(jobs, job(name)),
    ):
        wait_until("a checkpoint", lambda: checkpointed(jobs, name))
        (head,) = pods(jobs, name, "head")
        if victim == "head":
            jobs.run("delete", "pod", head, "--grace-period=0", "--force")
        else:
            jobs.run("exec", head, "-c", "ray-head", "--", "python", "-c", KILL_DRIVER)
        status = wait_until("the end", lambda: ended(jobs, name))
        assert status["phase"] == "Succeeded", status["message"]
        assert equal(losses(jobs, release, status), undisturbed)
    assert "Retrying" in watch.phases()
    assert [attempt["reason"] for attempt in status["attemptHistory"]] == [
        {"head": "HeadLost", "driver": "TrainingFailed"}[victim],
        "Completed",
    ]
    made = {state["metadata"]["name"] for state in clusters.states}
    assert len(made) == {"head": 2, "driver": 1}[victim], made


@pytest.mark.exclusive
def test_a_run_survives_a_node_that_says_nothing_for_a_minute(
    jobs: Kubectl, release: Release, undisturbed: dict[int, float]
) -> None:
    if cluster.harness("mode")[0] != "source":
        pytest.skip("the kubelet of another's cluster is not for a test to stop")
    node = jobs.list("nodes")[0]["metadata"]["name"]
    with applied(jobs, job("silent-node")):
        wait_until("a checkpoint", lambda: checkpointed(jobs, "silent-node"))
        with cluster.paused("kubelet"):
            wait_until("the node to be missed", lambda: "Unknown" in readiness(jobs, node))
            wait_until("a minute of silence", after(20))
        wait_until("the node to be back", lambda: "True" in readiness(jobs, node))
        status = wait_until("the end", lambda: ended(jobs, "silent-node"))
        assert status["phase"] == "Succeeded", status["message"]
        assert equal(losses(jobs, release, status), undisturbed)


def readiness(jobs: Kubectl, node: str) -> str:
    conditions = (jobs.get("node", node) or {})["status"]["conditions"]
    return str(next(item["status"] for item in conditions if item["type"] == "Ready"))


def test_a_suspended_run_gives_its_pods_back_and_goes_on(jobs: Kubectl, release: Release, undisturbed: dict[int, float]) -> None:
    name = "suspended"
    with applied(jobs, job(name)):
        wait_until("a checkpoint", lambda: checkpointed(jobs, name))
        change_spec(jobs, name, suspend=True)
        status = wait_until("Suspended", lambda: in_phase(jobs, name, "Suspended"))
        label = f"llmonray.dev/finetunejob={name}"
        wait_until("its pods to be gone", lambda: not jobs.list("rayclusters,pods", label))
        stopped = status["checkpoint"]["step"]
        assert stopped >= EVERY
        change_spec(jobs, name, suspend=False)
        status = wait_until("the end", lambda: ended(jobs, name))
        assert status["phase"] == "Succeeded", status["message"]
        assert [attempt["reason"] for attempt in status["attemptHistory"]] == ["SuspendedByUser", "Completed"]
        assert equal(losses(jobs, release, status), undisturbed)


def in_phase(jobs: Kubectl, name: str, phase: str) -> Any:
    status = job_status(jobs, name)
    return status if status.get("phase") == phase else None
