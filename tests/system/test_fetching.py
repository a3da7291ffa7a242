"""What a job names by addresses is fetched once, before there is a Ray cluster, whatever becomes of the pod or the operator."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.support.builders import NAMESPACE
from tests.system.world import JOB, World

pytestmark = pytest.mark.sampled(4)

URI = "https://files.example/rows.jsonl"
ADDRESS = {"dataset": {"uri": URI}, "retryPolicy": {"maxAttempts": 3, "backoffSeconds": 0}}
POD = "demo-1f0c3-fetch-1"
FETCHED = {"dataset": {"version": "0123456789abcdef", "origin": '"etag"', "files": 1, "sizeBytes": 1234}}


def failure(reason: str, *, retryable: bool = False) -> dict[str, Any]:
    return {"failure": {"reason": reason, "message": "why it failed", "retryable": retryable}}


def pods(world: World) -> list[str]:
    return sorted(name for _, name in world.kube.objects["pods"])


def kubelet_says(world: World, name: str = POD, phase: str = "Running", *, report: Any = None, **status: Any) -> None:
    pod = world.kube.objects["pods"][NAMESPACE, name]
    if report is not None:
        code = 1 if "failure" in report else 0
        terminated = {"exitCode": code, "message": json.dumps(report)}
        status["containerStatuses"] = [{"name": "fetch", "state": {"terminated": terminated}}]
    world.kube.put("pods", pod | {"status": {"phase": phase, **status}})


async def fetching(world: World, name: str = POD, **spec: Any) -> None:
    """To the pod that fetches."""
    if not world.kube.get("finetunejobs", JOB):
        world.add_job(spec=ADDRESS | spec)
        await world.start_operator()
    await world.until(lambda: name in pods(world), "the pod that fetches is made")


async def test_rows_are_fetched_before_a_cluster_is_made_and_the_run_reads_that_version(world: World) -> None:
    await fetching(world)
    assert not world.made("rayclusters")
    assert world.made("persistentvolumeclaims") == 1
    kubelet_says(world, phase="Succeeded", report=FETCHED)
    await world.until(lambda: world.made("rayclusters"), "the cluster is made")
    assert not pods(world)
    assert world.status()["fetch"]["dataset"] == FETCHED["dataset"]
    assert world.condition("Fetched")["status"] == "True"
    (cluster,) = world.kube.objects["rayclusters"].values()
    mounts = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["volumeMounts"]
    (data,) = [mount for mount in mounts if mount["mountPath"] == "/data"]
    assert data["readOnly"]
    assert data["subPath"].startswith("fetched/")
    assert data["subPath"].endswith("/0123456789abcdef")


@pytest.mark.parametrize(
    "reason", ["DatasetNotFound", "DatasetAccessDenied", "ChecksumMismatch", "FetchVolumeFull", "FetchFailed"]
)
async def test_what_would_recur_ends_the_job_with_the_reason_and_is_not_tried_again(world: World, reason: str) -> None:
    await fetching(world)
    kubelet_says(world, phase="Failed", report=failure(reason))
    await world.until(lambda: world.phase() == ("Failed", reason), "the job fails")
    assert "why it failed" in world.status()["message"]
    await world.until(lambda: not pods(world), "the pod is deleted")
    assert world.made("pods") == 1
    assert not world.made("rayclusters")


async def test_what_may_be_gone_is_tried_again_as_often_as_the_policy_says(world: World) -> None:
    for attempt in (1, 2, 3):
        await fetching(world, f"demo-1f0c3-fetch-{attempt}")
        assert len(pods(world)) == 1, "one pod at a time"
        kubelet_says(world, f"demo-1f0c3-fetch-{attempt}", "Failed", report=failure("FetchFailed", retryable=True))
    await world.until(lambda: world.phase() == ("Failed", "FetchFailed"), "the job fails")
    assert world.made("pods") == 3


async def test_a_pod_without_memory_is_told_and_not_tried_again(world: World) -> None:
    await fetching(world)
    ended = {"exitCode": 137, "reason": "OOMKilled"}
    kubelet_says(world, phase="Failed", containerStatuses=[{"name": "fetch", "state": {"terminated": ended}}])
    await world.until(lambda: world.phase() == ("Failed", "WorkerOOMKilled"), "the job fails")
    assert POD in world.status()["message"]


async def test_a_pod_that_no_node_takes_is_told_and_waits(world: World) -> None:
    await fetching(world)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    kubelet_says(world, phase="Pending", conditions=[condition])
    await world.until(lambda: world.phase() == ("Pending", "Unschedulable"), "it is told")
    assert "0/3 nodes" in world.status()["message"]
    kubelet_says(world, phase="Succeeded", report=FETCHED)
    await world.until(lambda: world.made("rayclusters"), "the job goes on")


async def test_a_pod_that_is_gone_is_made_again_under_its_name(world: World) -> None:
    await fetching(world)
    kubelet_says(world)
    world.kube.remove("pods", (NAMESPACE, POD))
    await world.until(lambda: world.made("pods") == 2, "it is made again")
    kubelet_says(world, phase="Succeeded", report=FETCHED)
    await world.until(lambda: world.made("rayclusters"), "the job goes on")


async def test_an_operator_that_starts_in_the_middle_makes_no_second_pod(world: World) -> None:
    await fetching(world)
    kubelet_says(world)
    await world.stop_operator()
    await world.start_operator()
    await world.rounds(5)
    assert world.made("pods") == 1
    await world.stop_operator()
    kubelet_says(world, phase="Succeeded", report=FETCHED)
    await world.start_operator()
    await world.until(lambda: world.made("rayclusters"), "the job goes on")
    assert world.made("pods") == 1


async def test_a_suspended_fetch_gives_its_pod_back_and_goes_on_later(world: World) -> None:
    await fetching(world)
    world.change_spec(suspend=True)
    await world.until(lambda: world.phase()[0] == "Suspended" and not pods(world), "it is suspended")
    world.change_spec(suspend=False)
    await world.until(lambda: POD in pods(world), "it goes on")
    kubelet_says(world, phase="Succeeded", report=FETCHED)
    await world.until(lambda: world.made("rayclusters"), "the cluster is made")


async def test_a_cancelled_fetch_leaves_no_pod_even_if_the_operator_dies_before_it_is_deleted(world: World) -> None:
    await fetching(world)
    world.gate.cut_at_label = "DELETE pods"
    world.change_spec(cancel=True)
    await world.until(lambda: world.phase()[0] == "Cancelled" and not pods(world), "the pod is deleted")
    assert world.restarts == 1
    assert not world.made("rayclusters")


async def test_the_pod_of_somebody_else_under_our_name_is_told(world: World) -> None:
    world.kube.put("pods", {"metadata": {"namespace": NAMESPACE, "name": POD}, "spec": {}})
    world.add_job(spec=ADDRESS)
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", "NameConflict"), "it is told")
    assert not world.made("rayclusters")


async def test_an_end_without_a_report_that_can_be_read_is_tried_again(world: World) -> None:
    await fetching(world)
    kubelet_says(world, phase="Succeeded", report={"dataset": {"version": "../../etc"}})
    await world.until(lambda: world.made("pods") == 2, "it is tried again")


async def test_a_job_without_addresses_makes_no_pod(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await world.until(lambda: world.made("rayclusters"), "the cluster is made")
    assert not world.made("pods")
    assert "fetch" not in world.status()
