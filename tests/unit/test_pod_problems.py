"""What is wrong with a pod: the words of scheduler and kubelet, as they were seen, become a reason and a detail."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import DATA, load_yaml

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import Reason
from finetune_operator.observed import Pod

WORKER = load_yaml(DATA / "kuberay" / "worker_pod.yaml")
SPEC = {"containers": [{"name": "other"}, {"name": "ray-worker", "resources": {"limits": {"memory": "8Gi"}}}]}


def container(state: dict[str, Any], kind: str = "containerStatuses") -> dict[str, Any]:
    running = {"image": "i", "name": "other", "state": {"running": {}}}
    return {kind: [running, {"image": "registry.example/trainer:1", "name": "ray-worker", "state": state}]}


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        pytest.param(
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]},
            Reason.UNSCHEDULABLE,
            "0/3 nodes",
            id="the scheduler's own words",
        ),
        pytest.param(
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "message": "gated"}]},
            None,
            "",
            id="gated by a queue is no problem",
        ),
        *(
            pytest.param(
                container({"waiting": {"reason": reason, "message": "not found"}}),
                Reason.IMAGE_PULL_FAILED,
                "registry.example/trainer:1: not found",
                id=reason,
            )
            for reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull")
        ),
        pytest.param(
            container(
                {"waiting": {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "i": ErrImagePull: no such'}}
            ),
            Reason.IMAGE_PULL_FAILED,
            "registry.example/trainer:1: no such",
            id="the same words while it waits for the next try",
        ),
        pytest.param(
            container({"waiting": {"reason": "ImagePullBackOff", "message": "m"}}, "initContainerStatuses"),
            Reason.IMAGE_PULL_FAILED,
            "registry.example/trainer:1: m",
            id="image of an init container",
        ),
        pytest.param(
            container({"waiting": {"reason": "CreateContainerConfigError", "message": 'secret "hf" not found'}}),
            Reason.SECRET_NOT_FOUND,
            'secret "hf" not found',
            id="secret",
        ),
        pytest.param(
            container({"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            Reason.WORKER_OOM_KILLED,
            "container ray-worker ran out of its memory limit of 8Gi",
            id="OOM",
        ),
        pytest.param(
            container({"terminated": {"reason": "Error", "exitCode": 127, "message": "ray: not found\n"}}),
            Reason.POD_FAILED,
            "container ray-worker ended with exit code 127: ray: not found",
            id="the container's last words",
        ),
        *(
            pytest.param(container({"terminated": {"reason": "Error", "exitCode": code}}), None, "", id=f"killed by {code - 128}")
            for code in (137, 143)
        ),
        pytest.param(
            container({"waiting": {"reason": "RunContainerError", "message": "no such file"}}),
            Reason.POD_FAILED,
            "container ray-worker cannot be started: no such file",
            id="a container that does not start",
        ),
        pytest.param(
            {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
            Reason.EVICTED,
            "Evicted: The node was low on resource: memory.",
            id="evicted by the kubelet",
        ),
        pytest.param(
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": "m"}]},
            Reason.EVICTED,
            "PreemptionByScheduler: m",
            id="put out for another pod",
        ),
        *(
            pytest.param(
                {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]},
                Reason.CLAIM_NOT_BOUND,
                words,
                id=words,
            )
            for words in (
                "pod has unbound immediate PersistentVolumeClaims. not found",
                'persistentvolumeclaim "out" not found',
                "0/1 nodes are available: 1 node(s) didn't find available persistent volumes to bind.",
            )
        ),
        pytest.param(
            container({"waiting": {"reason": "CreateContainerConfigError", "message": 'configmap "rows" not found'}}),
            Reason.CONFIG_MAP_NOT_FOUND,
            'configmap "rows" not found',
            id="ConfigMap",
        ),
        pytest.param(container({"waiting": {"reason": "PodInitializing"}}), None, "", id="starting is no problem"),
        pytest.param(container({"waiting": {"reason": "ContainerCreating"}}), None, "", id="creating is no problem"),
        pytest.param(container({"terminated": {"reason": "Completed", "exitCode": 0}}), None, "", id="done is no problem"),
        pytest.param({"containerStatuses": None, "conditions": None}, None, "", id="nulls"),
    ],
)
def test_problem_of_a_pod_is_named(status: dict[str, Any], reason: Reason | None, message: str) -> None:
    read = Pod.from_raw({"metadata": WORKER["metadata"], "spec": SPEC, "status": status})
    assert read.problem == (Problem(reason, message) if reason else None)
