"""Reading what KubeRay and the kubelet write."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import CLUSTER_UID, DATA, UID, load_yaml, make_pod, merge

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import Reason
from finetune_operator.observed import Cluster, Observed, Pod

READY = load_yaml(DATA / "kuberay" / "ready.yaml")
WORKER = load_yaml(DATA / "kuberay" / "worker_pod.yaml")


def cluster(**conditions: tuple[str, str, str]) -> Cluster:
    """The ready cluster with some conditions replaced: type=(status, reason, message)."""
    others = [item for item in READY["status"]["conditions"] if item["type"] not in conditions]
    changed = [{"type": type_, "status": s, "reason": r, "message": m} for type_, (s, r, m) in conditions.items()]
    return Cluster.from_raw(merge(READY, {"status": {"conditions": others + changed}}))


def test_a_ready_cluster_is_read_in_full() -> None:
    assert Cluster.from_raw(READY) == Cluster(
        name="demo-1f0c3-1",
        uid=CLUSTER_UID,
        owner_uid=UID,
        deleting=False,
        suspended=False,
        head_ready=True,
        head_lost=False,
        head_ip="10.88.0.12",
        key_id="0123456789ab",
        workers_ready=2,
        workers_desired=2,
        message="",
    )


def test_a_cluster_that_kuberay_has_not_seen_yet_is_not_ready() -> None:
    read = Cluster.from_raw({"metadata": READY["metadata"], "spec": READY["spec"]})
    assert (read.head_ready, read.head_lost, read.workers_ready, read.workers_desired, read.head_ip) == (False, False, 0, 2, "")


def test_a_cluster_with_nothing_but_a_name_is_readable() -> None:
    read = Cluster.from_raw({"metadata": {"name": "x", "uid": "u"}})
    assert (read.owner_uid, read.key_id, read.workers_desired) == (None, None, 0)


def test_a_head_that_is_not_found_after_the_cluster_was_provisioned_is_lost() -> None:
    read = cluster(HeadPodReady=("False", "HeadPodNotFound", "Head Pod not found"))
    assert (read.head_ready, read.head_lost) == (False, True)


@pytest.mark.parametrize("reason", ["ContainersNotReady", "PodRunning", "Unknown"])
def test_a_head_that_is_not_ready_is_not_lost(reason: str) -> None:
    assert not cluster(HeadPodReady=("False", reason, "")).head_lost


def test_a_head_that_was_never_there_is_slow_and_not_lost() -> None:
    read = cluster(
        HeadPodReady=("False", "HeadPodNotFound", ""), RayClusterProvisioned=("False", "RayClusterPodsProvisioning", "")
    )
    assert not read.head_lost


def test_what_kuberay_could_not_make_is_told_only_while_it_holds() -> None:
    words = 'pods "demo" is forbidden: exceeded quota: team, requested: cpu=1, used: cpu=4, limited: cpu=4'
    assert cluster(ReplicaFailure=("True", "FailedCreateWorkerPod", words)).message == words
    assert cluster(ReplicaFailure=("False", "FailedCreateWorkerPod", words)).message == ""


def test_a_state_that_is_not_known_is_no_verdict() -> None:
    read = Cluster.from_raw(merge(READY, {"status": {"state": "dreaming"}}))
    assert read == Cluster.from_raw(READY)


def test_only_a_controller_reference_makes_an_owner() -> None:
    owners = [{"uid": "someone", "kind": "Workload"}]
    assert Cluster.from_raw(merge(READY, {"metadata": {"ownerReferences": owners}})).owner_uid is None


def test_a_cluster_that_is_being_deleted_says_so() -> None:
    assert Cluster.from_raw(merge(READY, {"metadata": {"deletionTimestamp": "2026-01-02T03:05:00Z"}})).deleting


def pod(status: dict[str, Any], **metadata: Any) -> Pod:
    return Pod.from_raw({"metadata": merge(WORKER["metadata"], metadata), "status": status})


def test_a_healthy_worker_has_no_problem() -> None:
    assert Pod.from_raw(WORKER) == Pod("demo-1f0c3-1-workers-worker-9xk4d", is_head=False, ready=True)


def test_a_pod_that_no_kubelet_has_seen_has_no_problem() -> None:
    assert pod({}) == Pod("demo-1f0c3-1-workers-worker-9xk4d", is_head=False, ready=False)


def test_the_head_is_known_by_its_label() -> None:
    assert pod({}, labels={"ray.io/node-type": "head"}).is_head


def test_problem_prefers_the_head_then_the_first_name() -> None:
    head = Pod("z-head", is_head=True, ready=False, problem=Problem(Reason.UNSCHEDULABLE, ""))
    observed = Observed(pods=(make_pod("b", reason=Reason.UNSCHEDULABLE), make_pod("a", reason=Reason.UNSCHEDULABLE), head))
    assert observed.pod_problem == (head, head.problem)
    assert Observed(pods=(make_pod(),)).pod_problem is None
