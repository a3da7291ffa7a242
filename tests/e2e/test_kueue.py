"""With the real Kueue: jobs wait for quota, give way to those of higher priority, and go on from their checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.support import cluster
from tests.support.cluster import applied, change_spec, ended, job_status
from tests.support.jobs import WITH_WORDS, finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until, watching

API = "kueue.x-k8s.io/v1beta1"
QUEUE, URGENT = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"


@pytest.fixture(scope="module")
def queue(jobs_with_words: Kubectl) -> Iterator[str]:
    """A queue with room for one job of one worker; gives its name."""
    jobs = jobs_with_words
    if cluster.harness("mode")[0] == "source":
        cluster.harness("kueue", "up")
    elif jobs.run("get", "crd", "clusterqueues.kueue.x-k8s.io", check=False).returncode:
        pytest.skip("Kueue is not installed in this cluster")
    quota = {"flavors": [{"name": "finetune-any", "resources": [room("cpu", "1"), room("memory", "8Gi")]}]}
    group = {"coveredResources": ["cpu", "memory"], **quota}
    spec = {"namespaceSelector": {}, "preemption": {"withinClusterQueue": "LowerPriority"}, "resourceGroups": [group]}
    objects: list[Object] = [
        {"apiVersion": API, "kind": "ResourceFlavor", "metadata": {"name": "finetune-any"}},
        {"apiVersion": API, "kind": "ClusterQueue", "metadata": {"name": "finetune-e2e"}, "spec": spec},
        {"apiVersion": API, "kind": "LocalQueue", "metadata": {"name": "team"}, "spec": {"clusterQueue": "finetune-e2e"}},
        {"apiVersion": API, "kind": "WorkloadPriorityClass", "metadata": {"name": "finetune-urgent"}, "value": 1000},
    ]
    jobs.apply(*objects)
    yield "team"
    for item in reversed(objects):
        jobs.run("delete", item["kind"], item["metadata"]["name"], "--timeout=240s")
    if cluster.harness("mode")[0] == "source":
        cluster.harness("kueue", "down")


def room(name: str, amount: str) -> Object:
    return {"name": name, "nominalQuota": amount}


def queued(name: str, queue: str, steps: int) -> Object:
    policy = {"checkpoint": {"everySteps": 4, "keep": 2}, "retryPolicy": {"maxAttempts": 1}, "activeDeadlineSeconds": 600}
    job = finetune_job(name, Training__max_train_steps=steps, Training__num_training_workers=1, **WITH_WORDS, **policy)
    job["metadata"]["labels"] = {QUEUE: queue}
    return job


def says(jobs: Kubectl, name: str, phase: str, reason: str) -> Callable[[], Any]:
    def check() -> Any:
        status = job_status(jobs, name)
        return status if (status.get("phase"), status.get("reason")) == (phase, reason) else None

    return check


def test_a_job_waits_for_quota_gives_way_and_goes_on_from_its_checkpoint(jobs: Kubectl, queue: str) -> None:
    low, urgent = queued("low", queue, 40), queued("urgent", queue, 2)
    urgent["metadata"]["labels"][URGENT] = "finetune-urgent"
    with watching(jobs, "finetunejobs", fieldSelector="metadata.name=low") as watch, applied(jobs, low):
        wait_until("a checkpoint", lambda: (job_status(jobs, "low").get("checkpoint") or {}).get("step"))
        with applied(jobs, queued("waits", queue, 2)):
            status = wait_until("Queued", says(jobs, "waits", "Queued", "Queued"))
            wait_until("Kueue's words", lambda: told(jobs, "waits", "insufficient"))
            assert (status.get("startTime"), status["attempt"]) == (None, 1)
            assert not jobs.list("pods", "llmonray.dev/finetunejob=waits")
        with applied(jobs, urgent):
            wait_until("Preempted", says(jobs, "low", "Queued", "Preempted"))
            wait_until("the urgent one's end", lambda: ended(jobs, "urgent"))
            assert job_status(jobs, "urgent")["phase"] == "Succeeded", job_status(jobs, "urgent")["message"]
        status = wait_until("the end", lambda: ended(jobs, "low"))
    assert status["phase"] == "Succeeded", status["message"]
    assert [attempt["reason"] for attempt in status["attemptHistory"]] == ["Preempted", "Completed"]
    assert "failedAttempts" not in status
    assert watch.phases()[-3:] == ["Provisioning", "Running", "Succeeded"]
    assert len({made["ray"]["cluster"] for made in watch.statuses() if "ray" in made}) == 1
    resumed = min(made["progress"]["step"] for made in watch.statuses() if trained_again(made))
    assert resumed >= 4, "it went on from a checkpoint"
    wait_until("its quota to be free", lambda: not jobs.list("workloads.kueue.x-k8s.io"))


def told(jobs: Kubectl, name: str, word: str) -> str | None:
    message: str = job_status(jobs, name).get("message", "")
    return message if word in message else None


def trained_again(status: Object) -> bool:
    progress = status.get("progress") or {}
    return progress.get("attempt") == 2 and progress.get("totalSteps", 0) > 0


def test_a_queued_job_can_be_cancelled_and_suspended(jobs: Kubectl, queue: str) -> None:
    big = queued("big", queue, 2)
    big["spec"]["workers"] = {"memory": "64Gi"}
    with applied(jobs, big):
        wait_until("Queued", says(jobs, "big", "Queued", "Queued"))
        change_spec(jobs, "big", suspend=True)
        wait_until("Suspended", says(jobs, "big", "Suspended", "SuspendedByUser"))
        assert not jobs.list("rayclusters", "llmonray.dev/finetunejob=big")
        change_spec(jobs, "big", suspend=False, workers={"memory": "63Gi"})
        wait_until("Queued", says(jobs, "big", "Queued", "Queued"))
        change_spec(jobs, "big", cancel=True)
        wait_until("Cancelled", lambda: ended(jobs, "big"))
        wait_until("its quota to be free", lambda: not jobs.list("workloads.kueue.x-k8s.io"))
