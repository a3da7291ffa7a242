"""Lost runs are taken up again, and suspended ones go on: what an operator on loopback does about them, and in which order."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, UID, finished_progress, raw_progress
from tests.support.chart import namespace_rules, request_right, rights
from tests.system.world import CLUSTER, World, bring_up, run_training

pytestmark = pytest.mark.sampled(5)

SECOND = (NAMESPACE, "demo-1f0c3-2")
FAST = {"retryPolicy": {"maxAttempts": 2, "backoffSeconds": 0}}
CHECKPOINT = {"step": 8, "path": "/output/checkpoints/step-00000008", "time": "2026-01-02T03:04:05Z"}


async def training(world: World, **spec: Any) -> None:
    world.add_job(spec=FAST | spec)
    await world.start_operator()
    await run_training(world, raw_progress(checkpoint=CHECKPOINT))


async def second_attempt(world: World) -> None:
    """The second attempt runs to its end."""
    await world.until(lambda: world.status().get("attempt") == 2, "another attempt begins")
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress(attempt=2, step=12))
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "it runs again")
    world.ray_says("SUCCEEDED", progress=finished_progress(attempt=2))
    await world.until(lambda: world.phase()[0] == "Succeeded", "the job succeeds")


def history(world: World) -> list[tuple[int, str, str]]:
    return [(item["attempt"], item["cluster"], item["reason"]) for item in world.status()["attemptHistory"]]


def submitted(world: World) -> list[str]:
    return [body["submission_id"] for body in world.ray.accepted]


def lose_head(world: World) -> None:
    world.head.jobs.clear()


def lose_cluster(world: World) -> None:
    world.kube.remove("rayclusters", world.cluster)


def lose_driver(world: World) -> None:
    world.ray_says("FAILED", "exit code 137")


LOSSES = {
    "head": (lose_head, "HeadLost", SECOND),
    "cluster": (lose_cluster, "HeadLost", SECOND),
    "driver": (lose_driver, "TrainingFailed", CLUSTER),
}


@pytest.mark.parametrize("what", LOSSES)
async def test_a_lost_run_is_taken_up_again(world: World, what: str) -> None:
    lose, reason, cluster = LOSSES[what]
    await training(world)
    lose(world)
    await second_attempt(world)
    assert history(world) == [(1, CLUSTER[1], reason), (2, cluster[1], "Completed")]
    assert submitted(world) == [f"{UID}-a1", f"{UID}-a2"]
    assert world.made("rayclusters") == (1 if cluster == CLUSTER else 2)
    await world.until(lambda: not world.kube.objects["rayclusters"], "its cluster is deleted")
    told = [event["reason"] for event in world.kube.objects["events"].values()]
    assert told.count("Retrying") == 1


@pytest.mark.sampled(3)
@pytest.mark.parametrize("what", LOSSES)
async def test_a_run_that_is_lost_each_time_fails_with_all_attempts_on_record(world: World, what: str) -> None:
    lose, reason, _cluster = LOSSES[what]
    await training(world)
    lose(world)
    await world.until(lambda: world.status().get("attempt") == 2, "another attempt begins")
    await run_training(world, raw_progress(attempt=2))
    lose(world)
    await world.until(lambda: world.phase() == ("Failed", reason), "it fails")
    assert "attempt 2 of 2: " in world.status()["message"]
    await world.until(lambda: not world.kube.objects["rayclusters"], "its cluster is deleted")
    assert [(number, why) for number, _name, why in history(world)] == [(1, reason), (2, reason)]
    assert len(world.ray.accepted) == 2
    assert "deleteWithJob" not in world.kube.objects["finetunejobs"].popitem()[1]["spec"]["output"]
    assert len(world.kube.objects["persistentvolumeclaims"]) == 1


async def test_a_run_is_asked_for_a_checkpoint_then_its_cluster_goes_and_then_it_goes_on(world: World) -> None:
    await training(world)
    world.change_spec(suspend=True)
    await world.until(lambda: world.head.stops, "the run is asked to stop", nudge=False)
    assert world.phase()[0] == "Suspending"
    assert world.kube.get("rayclusters", CLUSTER) is not None
    world.ray_says("STOPPED", progress=raw_progress(state="stopped", step=12, checkpoint=CHECKPOINT | {"step": 12}))
    await world.until(lambda: world.phase()[0] == "Suspended", "it is suspended", nudge=False)
    assert world.kube.objects["rayclusters"] == {}
    assert world.condition("Suspended")["status"] == "True"
    assert world.status()["checkpoint"]["step"] == 12
    before = len(world.kube.writes())
    await world.rounds(5)
    assert len(world.kube.writes()) == before
    world.change_spec(suspend=False)
    await second_attempt(world)
    assert history(world) == [(1, CLUSTER[1], "SuspendedByUser"), (2, SECOND[1], "Completed")]
    asked = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert asked <= set(rights(namespace_rules()))


@asynccontextmanager
async def cut(world: World, label: str, *, after: bool) -> AsyncIterator[None]:
    """Cut the operator off at the next write of that name."""
    world.gate.cut_at_label, world.gate.cut_after = label, after
    yield
    await world.until(lambda: not world.gate.closed, "the new operator is up")
    assert world.restarts == 1


RETRY_WRITES = ("status Retrying", "DELETE rayclusters", "status Pending", "POST rayclusters", "POST job")
SUSPEND_WRITES = ("status Suspending", "POST stop", "DELETE rayclusters", "status Suspended")


@pytest.mark.sampled(3)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("label", RETRY_WRITES)
async def test_a_crash_at_any_write_of_a_retry_changes_nothing_about_it(world: World, label: str, after: bool) -> None:
    await training(world)
    async with cut(world, label, after=after):
        lose_head(world)
        await second_attempt(world)
    assert history(world) == [(1, CLUSTER[1], "HeadLost"), (2, SECOND[1], "Completed")]
    assert submitted(world) == [f"{UID}-a1", f"{UID}-a2"]
    assert world.made("rayclusters") == 2


@pytest.mark.sampled(3)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("label", SUSPEND_WRITES)
async def test_a_crash_at_any_write_of_a_suspension_changes_nothing_about_it(world: World, label: str, after: bool) -> None:
    await training(world)
    async with cut(world, label, after=after):
        world.change_spec(suspend=True)
        await world.until(lambda: world.head.stops, "the run is asked to stop")
        world.ray_says("STOPPED", progress=raw_progress(state="stopped"))
        await world.until(lambda: world.phase()[0] == "Suspended", "it is suspended")
    world.change_spec(suspend=False)
    await second_attempt(world)
    assert history(world) == [(1, CLUSTER[1], "SuspendedByUser"), (2, SECOND[1], "Completed")]
    assert submitted(world) == [f"{UID}-a1", f"{UID}-a2"]
