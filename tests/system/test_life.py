"""The life of a job, from the YAML to the model."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from tests.support.builders import UID, finished_progress, raw_progress
from tests.support.chart import namespace_rules, request_right, rights
from tests.system.world import CLUSTER, JOB, World, bring_up, run_to_the_end, run_training

pytestmark = pytest.mark.sampled(5)

WRITES = (
    "status Pending",
    "POST events",
    "POST persistentvolumeclaims",
    "POST secrets",
    "POST configmaps",
    "POST rayclusters",
    "status Provisioning",
    "POST events",
    "status conditions+message+ray",
    "POST job",
    "status conditions+ray",
    "status Running",
    "POST events",
    "status Succeeded",
    "POST events",
    "DELETE rayclusters",
)
"""Every write of an undisturbed run: nothing twice, nothing in vain, intent before action."""


def end_state(world: World) -> dict[str, Any]:
    """What is left at the end, without times."""
    status = json.loads(json.dumps(world.status()))
    for condition in status["conditions"]:
        del condition["lastTransitionTime"]
    for name in ("startTime", "completionTime"):
        assert status.pop(name)
    for name in ("requestTime", "startTime", "endTime"):
        assert status["ray"].pop(name)
    for attempt in status["attemptHistory"]:
        del attempt["startTime"], attempt["endTime"]
    del status["activeSeconds"], status["progress"]["stepTime"]
    status["conditions"].sort(key=lambda condition: condition["type"])
    objects = {plural: sorted(found) for plural, found in world.kube.objects.items() if found and plural != "events"}
    return {"status": status, "objects": objects}


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    """The end state of a run in which nothing goes wrong."""

    async def run() -> dict[str, Any]:
        async with World.open() as world:
            return await live(world)

    return asyncio.run(run())


async def live(world: World) -> dict[str, Any]:
    world.add_job()
    await world.start_operator()
    await run_to_the_end(world, raw_progress(), finished_progress())
    return end_state(world)


async def test_a_job_runs_to_its_end_with_exactly_these_writes(world: World) -> None:
    state = await live(world)
    assert tuple(world.gate.labels) == WRITES
    assert state["status"]["phase"] == "Succeeded"
    assert state["status"]["output"]["manifestSHA256"] == "ab" * 32
    assert state["status"]["attempt"] == 1
    assert set(state["objects"]) == {"finetunejobs", "persistentvolumeclaims", "secrets", "configmaps"}


async def test_one_cluster_is_made_and_one_driver_submitted(world: World) -> None:
    await live(world)
    assert world.made("rayclusters") == 1
    assert [seen.path for seen in world.kube.writes()].count("/apis/ray.io/v1/namespaces/team/rayclusters") == 1
    assert len(world.ray.posts()) == len(world.ray.accepted) == 1
    assert world.ray.accepted[0]["submission_id"] == f"{UID}-a1"


async def test_the_output_claim_outlives_the_cluster(world: World) -> None:
    await live(world)
    (claim,) = world.kube.objects["persistentvolumeclaims"].values()
    assert "ownerReferences" not in claim["metadata"]
    assert world.status()["output"]["persistentVolumeClaim"] == claim["metadata"]["name"]


async def test_events_tell_each_phase_once(world: World) -> None:
    await live(world)
    events = sorted(world.kube.objects["events"].values(), key=lambda event: int(event["metadata"]["resourceVersion"]))
    assert [(event["reason"], event["type"]) for event in events] == [
        ("Accepted", "Normal"), ("ClusterStarting", "Normal"), ("TrainingRunning", "Normal"), ("Completed", "Normal"),
    ]  # fmt: skip
    assert {event["involvedObject"]["uid"] for event in events} == {UID}


async def test_no_secret_is_anywhere_but_in_its_secret(world: World) -> None:
    await live(world)
    token = world.ray.requests[0].headers["x-ray-authorization"].removeprefix("Bearer ")
    assert len(token) == 64
    world.kube.objects.pop("secrets")
    assert token not in json.dumps([sorted(found.items()) for found in world.kube.objects.values()])
    assert token not in "".join(seen.text for seen in [*world.kube.requests, *world.ray.requests])


async def test_the_chart_allows_every_request_of_a_whole_life(world: World) -> None:
    await live(world)
    asked = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert asked <= set(rights(namespace_rules()))


async def test_a_steady_state_writes_nothing(world: World) -> None:
    await run_training_then_idle(world)
    before = len(world.gate.labels)
    await world.rounds(20)
    assert world.gate.labels[before:] == []


async def run_training_then_idle(world: World) -> None:
    world.add_job()
    await world.start_operator()
    await run_training(world, raw_progress())
    await world.rounds(3)


async def test_a_job_that_has_ended_is_left_alone_and_not_even_asked_about(world: World) -> None:
    await live(world)
    before = len(world.kube.requests), len(world.ray.requests)
    await world.rounds(5)
    assert (len(world.kube.requests), len(world.ray.requests)) == before


async def test_a_new_operator_finds_a_running_job_and_writes_nothing(world: World) -> None:
    await run_training_then_idle(world)
    await world.stop_operator()
    before = len(world.gate.labels)
    await world.start_operator()
    await world.rounds(10)
    assert world.gate.labels[before:] == []
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "the new operator sees the end")


@pytest.mark.sampled(5)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", range(len(WRITES)), ids=lambda number: f"{number}-{WRITES[number].replace(' ', '-')}")
async def test_a_crash_at_any_write_changes_nothing_about_the_end(
    world: World, undisturbed: dict[str, Any], number: int, after: bool
) -> None:
    world.gate.cut_at, world.gate.cut_after = number, after
    assert await live(world) == undisturbed
    await world.until(lambda: not world.gate.closed, "the new operator is up")
    assert world.restarts == 1
    assert world.made("rayclusters") == 1
    assert len(world.ray.accepted) == 1
    assert world.made("persistentvolumeclaims") == world.made("secrets") == world.made("configmaps") == 1
    assert set(world.kube.objects["finetunejobs"]) == {JOB}


async def test_a_crash_between_acceptance_by_ray_and_the_next_look_submits_nothing_twice(world: World) -> None:
    world.add_job()
    await world.start_operator()
    world.gate.cut_at, world.gate.cut_after = WRITES.index("POST job"), True
    await bring_up(world)
    assert world.restarts == 1
    assert len(world.ray.posts()) == 1
    assert world.kube.get("rayclusters", CLUSTER) is not None
