"""How jobs end before their run does, and what becomes of them afterwards."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, OTHER_UID, UID, finished_progress, merge, raw_progress
from tests.support.chart import namespace_rules, request_right, rights
from tests.system.world import CLUSTER, JOB, WORKER, World, bring_up, run_training

pytestmark = pytest.mark.sampled(5)


@pytest.fixture(autouse=True)
def _drivers_obey(world: World) -> None:
    world.ray.obeys = True


async def waiting(world: World) -> None:
    """For a claim that is not there."""
    await world.until(lambda: world.phase() == ("Pending", "ClaimNotFound"), "it waits")


async def accepted(world: World) -> None:
    """The attempt is stored, and the cluster cannot be made."""
    world.kube.refusals["POST", "rayclusters"] = (403, "Forbidden", "exceeded quota: team")
    await world.until(lambda: world.phase() == ("Pending", "QuotaExceeded"), "it cannot go on")


async def training(world: World) -> None:
    await run_training(world, raw_progress())


@pytest.mark.parametrize("where", [waiting, accepted, bring_up, training], ids=lambda where: where.__name__)
async def test_a_job_is_cancelled_wherever_it_is(world: World, where: Any) -> None:
    claim = {"size": None, "persistentVolumeClaim": {"claimName": "out"}}
    world.add_job(spec={"output": claim} if where is waiting else {})
    await world.start_operator()
    await where(world)
    world.change_spec(cancel=True)
    await world.until(lambda: world.phase() == ("Cancelled", "CancelledByUser"), "it is cancelled", nudge=False)
    await world.until(lambda: not world.kube.objects["rayclusters"], "its cluster is deleted", nudge=False)
    before = len(world.kube.writes())
    await world.rounds(3)
    assert len(world.kube.writes()) == before
    assert len(world.ray.accepted) == (where in {bring_up, training})
    assert world.made("persistentvolumeclaims") == len(world.kube.objects["persistentvolumeclaims"])


CANCELLING = ("status CancelledByUser", "POST stop", "status Cancelled", "POST events", "DELETE rayclusters")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(len(CANCELLING)), ids=lambda number: CANCELLING[number].replace(" ", "-"))
async def test_a_crash_at_any_write_of_a_cancellation_changes_nothing_about_it(world: World, number: int, after: bool) -> None:
    world.add_job()
    await world.start_operator()
    await training(world)
    await world.rounds(3)
    before = len(world.gate.labels)
    world.gate.cut_at, world.gate.cut_after = before + number, after
    world.change_spec(cancel=True)
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted")
    await world.until(lambda: not world.gate.closed, "the new operator is up")
    assert (world.restarts, world.phase()) == (1, ("Cancelled", "CancelledByUser"))
    assert set(world.gate.labels[before:]) <= set(CANCELLING)
    assert [attempt["reason"] for attempt in world.status()["attemptHistory"]] == ["CancelledByUser"]


async def test_a_run_is_ended_at_its_deadline_without_any_event(world: World) -> None:
    world.add_job(spec={"activeDeadlineSeconds": 2})
    await world.start_operator()
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress())
    await world.until(lambda: world.phase() == ("Failed", "DeadlineExceeded"), "it is over", nudge=False)
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted", nudge=False)
    assert world.status()["activeSeconds"] >= 2
    assert world.status()["progress"]["step"] == world.status()["attemptHistory"][0]["lastStep"] == 10


async def test_a_deadline_that_passes_while_no_operator_runs_holds(world: World) -> None:
    world.add_job(spec={"activeDeadlineSeconds": 3600})
    await world.start_operator()
    await training(world)
    await world.stop_operator()
    job = world.kube.objects["finetunejobs"][JOB]
    started = datetime.now(UTC) - timedelta(seconds=3600)
    world.kube.put("finetunejobs", merge(job, {"status": {"ray": {"startTime": f"{started:%Y-%m-%dT%H:%M:%SZ}"}}}))
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Failed", "DeadlineExceeded"), "the next operator ends it", nudge=False)


async def test_a_job_that_cannot_start_in_time_fails_with_the_words_of_what_it_waited_for(world: World) -> None:
    words = "0/3 nodes are available: 3 Insufficient memory."
    waits = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]}
    world.kube.put("pods", merge(WORKER, {"status": waits}))
    world.add_job(spec={"provisioningTimeoutSeconds": 2})
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Failed", "ProvisioningTimeout"), "it does not wait for ever", nudge=False)
    assert words in world.status()["message"]
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted", nudge=False)


async def test_a_stall_is_shown_without_a_write_per_poll_and_the_next_step_ends_it(world: World) -> None:
    world.add_job(spec={"stallTimeoutSeconds": 1})
    await world.start_operator()
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress(etaSeconds=1))
    await world.until(lambda: world.phase() == ("Running", "Stalled"), "no step is seen", nudge=False)
    assert world.condition("Progressing")["status"] == "False"
    before = len(world.kube.writes())
    await world.rounds(10)
    assert len(world.kube.writes()) == before
    ahead = datetime.now(UTC) + timedelta(minutes=1)
    world.ray_says("RUNNING", progress=raw_progress(step=11, lastReportTime=ahead.isoformat()))
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "the next step is seen", nudge=False)
    assert world.condition("Progressing")["status"] == "True"


async def test_a_cluster_is_kept_to_be_looked_at_and_then_goes_by_itself(world: World) -> None:
    world.add_job(spec={"clusterTTLSeconds": {"onSuccess": 2}})
    await world.start_operator()
    await training(world)
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "the job succeeds")
    assert world.kube.get("rayclusters", CLUSTER) is not None
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted", nudge=False)


async def test_a_job_is_deleted_by_its_uid_when_its_time_is_over_and_the_chart_allows_it(world: World) -> None:
    world.add_job(spec={"ttlSecondsAfterFinished": 0})
    await world.start_operator()
    await run_training(world, raw_progress())
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: not world.kube.objects["finetunejobs"], "the job is deleted", nudge=False)
    (deletion,) = [seen for seen in world.kube.writes() if seen.method == "DELETE" and "finetunejobs" in seen.path]
    assert json.loads(deletion.text)["preconditions"] == {"uid": UID}
    assert set(world.kube.objects["persistentvolumeclaims"]) == {(NAMESPACE, "demo-1f0c3-output")}
    asked = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert asked <= set(rights(namespace_rules()))


async def test_a_new_job_of_the_name_of_one_that_was_to_be_deleted_lives(world: World) -> None:
    """The watch has not told of it yet."""
    world.add_job(spec={"ttlSecondsAfterFinished": 0}, status={"phase": "Failed", "completionTime": "2026-01-02T03:04:05Z"})
    operator = await world.start_operator(working=False)
    world.kube.remove("finetunejobs", JOB)
    world.add_job(metadata={"uid": OTHER_UID})
    await operator.reconciler.reconcile(JOB)
    assert world.kube.get("finetunejobs", JOB) is not None
