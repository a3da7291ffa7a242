"""Many jobs: those that run do not wait for those that have ended, and what a watch has missed is made good by a LIST."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, begun, raw_job
from tests.system.world import READY, World

from finetune_operator.api.v1alpha1 import Phase, RayStatus, dump

FINISHED, RUNNING = 10_000, 100


def uid(number: int) -> str:
    return f"{number:08x}-5d1b-4c7e-9a35-2b6f8d9e0c11"


def add(world: World, number: int, **status: Any) -> str:
    """A job of an earlier operator; the name of its cluster."""
    name, id_ = f"job-{number}", uid(number)
    cluster = f"{name}-{id_[:5]}-1"
    ray = RayStatus(cluster=cluster, submission_id=f"{id_}-a1", workers_desired=2, workers="0/2")
    stored = begun(submitted=True, **status).model_copy(update={"ray": ray})
    world.kube.put("finetunejobs", raw_job(metadata={"name": name, "uid": id_}, status=dump(stored)))
    return cluster


def add_cluster(world: World, number: int, cluster: str) -> None:
    name, id_ = f"job-{number}", uid(number)
    owner = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "name": name, "uid": id_, "controller": True}
    metadata = {
        "name": cluster,
        "namespace": NAMESPACE,
        "labels": {"llmonray.dev/finetunejob": name},
        "ownerReferences": [owner],
    }
    world.kube.put("rayclusters", {"metadata": metadata, "spec": {}, "status": READY})


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
    await operator.view.refill(operator.view.places())
    for plural in ("finetunejobs", "rayclusters", "pods"):
        assert operator.cache.keys(plural) == set(world.kube.objects[plural])
