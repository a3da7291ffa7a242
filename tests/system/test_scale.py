"""Many jobs: those that run do not wait for those that have ended, and what a watch has missed is made good by a LIST."""

from __future__ import annotations

from time import monotonic

import pytest
from tests.support.builders import NAMESPACE, begun
from tests.system.many import add, add_cluster, uid
from tests.system.world import World

from finetune_operator.__main__ import refill
from finetune_operator.api.v1alpha1 import Phase

FINISHED, RUNNING = 10_000, 100


@pytest.mark.slow
async def test_all_running_jobs_are_attended_to_within_half_a_minute_of_a_restart_beside_ten_thousand_finished(
    world: World,
) -> None:
    ended = {"completion_time": begun().conditions[0].last_transition_time}
    for number in range(FINISHED):
        add(world, number, phase=Phase.SUCCEEDED, **ended)
    running = {}
    for number in range(FINISHED, FINISHED + RUNNING):
        running[number] = add(world, number, phase=Phase.RUNNING)
        add_cluster(world, number, running[number])
    began = monotonic()
    await world.start_operator()

    def asked() -> set[str]:
        return {seen.path.split("/")[2] for seen in world.ray.requests}

    await world.until(lambda: asked() >= set(running.values()), "every run is asked about", seconds=60, nudge=False)
    assert monotonic() - began < 30
    assert asked() == set(running.values())


async def test_what_was_deleted_while_nobody_watched_is_gone_after_the_next_list(world: World) -> None:
    """As after a watch that was broken off and may not go on where it was (410)."""
    for number in range(20):
        add_cluster(world, number, add(world, number, phase=Phase.SUCCEEDED))
    operator = await world.start_operator(watching=False, working=False)
    for number in range(0, 20, 2):
        world.kube.remove("finetunejobs", (NAMESPACE, f"job-{number}"))
        world.kube.remove("rayclusters", (NAMESPACE, f"job-{number}-{uid(number)[:5]}-1"))
    add(world, 99, phase=Phase.SUCCEEDED)
    await refill(operator.kube, operator.cache, ())
    for plural in ("finetunejobs", "rayclusters", "pods"):
        assert operator.cache.keys(plural) == set(world.kube.objects[plural])
