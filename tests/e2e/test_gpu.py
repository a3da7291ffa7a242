"""Device GPU: the resource is looked for, asked for, scheduled by, and known to Ray. There is no GPU, and the job says so."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until, watching

NAME = "gpu-ddp"
RESOURCE = "gpu.intel.com/i915"


@pytest.fixture
def without_gpus(jobs: Kubectl) -> Iterator[str]:
    """A node that advertises no Intel GPU, and does not afterwards either; gives its name."""
    node = jobs.list("nodes")[0]
    name = node["metadata"]["name"]
    if int(node["status"]["allocatable"].get(RESOURCE, "0")) > 0:
        pytest.fail("this test plays the device plugin's part and needs a node without one")
    yield name
    _advertise(jobs, name, None)


def _advertise(kubectl: Kubectl, node: str, count: int | None) -> None:
    value = None if count is None else str(count)
    patch = {"status": {"capacity": {RESOURCE: value}, "allocatable": {RESOURCE: value}}}
    kubectl.run("patch", "node", node, "--subresource=status", "--type=merge", "-p", json.dumps(patch))


def test_workers_are_scheduled_by_their_gpus_and_the_failure_names_the_missing_device(jobs: Kubectl, without_gpus: str) -> None:
    job = finetune_job(
        NAME, Training__device="GPU", Training__accelerate_mode="GPU_DDP", Training__resources_per_worker={"CPU": 0.5, "GPU": 1}
    )
    with (
        watching(jobs, "finetunejobs", fieldSelector=f"metadata.name={NAME}") as watch,
        watching(jobs, "pods", labelSelector="ray.io/node-type=worker") as workers,
    ):
        jobs.apply(job)
        status = wait_until("NoSuchResource", lambda: _status(jobs, lambda s: s.get("reason") == "NoSuchResource"))
        assert f"no node offers {RESOURCE}: 1" in status["message"], status["message"]
        assert not jobs.list("rayclusters")
        _advertise(jobs, without_gpus, 1)
        status = wait_until("Unschedulable", lambda: _status(jobs, lambda s: s.get("reason") == "Unschedulable"))
        assert RESOURCE in status["message"], status["message"]
        _advertise(jobs, without_gpus, 4)
        wait_until("Ray to see the GPUs", lambda: _ray_gpus(jobs) == 2)
        status = wait_until("the end", lambda: _status(jobs, lambda s: s.get("phase") in {"Succeeded", "Failed"}))
    assert (status["phase"], status["reason"]) == ("Failed", "DeviceNotFound"), status["message"]
    assert "XPU" in status["message"]
    assert watch.phases()[:2] == ["Pending", "Provisioning"]
    scheduled = {pod["metadata"]["name"]: pod for pod in workers.states if pod["spec"].get("nodeName")}
    assert len(scheduled) == 2
    for pod in scheduled.values():
        resources = pod["spec"]["containers"][0]["resources"]
        assert resources["requests"][RESOURCE] == resources["limits"][RESOURCE] == "1"
        assert pod["spec"]["nodeName"] == without_gpus
    assert any(name in status["message"] for name in scheduled), status["message"]
    jobs.run("delete", "finetunejob", NAME)
    wait_until("the RayCluster to be gone", lambda: not jobs.list("rayclusters"))


def _status(jobs: Kubectl, check: Any) -> Object | None:
    status: Object = (jobs.get("finetunejob", NAME) or {}).get("status", {})
    return status if check(status) else None


def _ray_gpus(jobs: Kubectl) -> float | None:
    """GPUs that the Ray cluster has, from its own dashboard."""
    job = jobs.get("finetunejob", NAME)
    if job is None:
        return None
    (secret,) = jobs.list("secrets", f"llmonray.dev/finetunejob-uid={job['metadata']['uid']}")
    token = base64.b64decode(secret["data"]["auth_token"]).decode()
    try:
        answer = jobs.proxy(f"{job['status']['ray']['cluster']}-head-svc", "/api/v0/nodes?detail=1", token)
    except (OSError, ValueError):
        return None
    nodes = ((answer.get("data") or {}).get("result") or {}).get("result") or []
    return sum(node["resources_total"].get("GPU", 0) for node in nodes if node["state"] == "ALIVE")
