"""What the operator sees of the cluster, where parts of it cannot be read, and what it does about jobs that are gone."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.builders import NAMESPACE, SETTINGS, raw_job
from tests.system.test_scale import add, add_cluster
from tests.system.world import JOB, World, bring_up

from finetune_operator.api.v1alpha1 import Phase
from finetune_operator.errors import KindMissingError

pytestmark = pytest.mark.sampled(4)

REFUSED = (403, "Forbidden", "rayclusters.ray.io is forbidden")


async def test_a_job_that_only_the_cache_knows_is_let_go_at_the_first_write(world: World) -> None:
    """Its deletion was missed by the watch."""
    world.add_job()
    operator = await world.start_operator(watching=False, working=False)
    world.kube.remove("finetunejobs", JOB)
    assert await operator.reconciler.reconcile(JOB) is None
    assert operator.cache.get("finetunejobs", JOB) is None
    assert await operator.reconciler.reconcile(JOB) is None
    assert len(world.kube.writes()) <= 1


async def test_a_kind_that_the_api_server_does_not_know_for_a_moment_is_not_a_kind_without_objects(world: World) -> None:
    add_cluster(world, 1, add(world, 1, phase=Phase.RUNNING))
    operator = await world.start_operator(working=False)
    world.kube.missing.add("rayclusters")
    await operator.view.refill(operator.view.places())
    assert operator.cache.keys("rayclusters") == set(world.kube.objects["rayclusters"]) != set()
    assert [type(error) for error in operator.view.failures.values()] == [KindMissingError]
    world.kube.missing.clear()
    await operator.view.refill(list(operator.view.failures))
    assert not operator.view.failures


async def test_a_run_goes_on_while_the_api_server_does_not_know_its_kind_for_a_moment(world: World) -> None:
    world.add_job()
    operator = await world.start_operator()
    await bring_up(world)
    world.kube.missing.add("rayclusters")
    await operator.view.refill(operator.view.places())
    await world.rounds(5)
    world.kube.missing.clear()
    await operator.view.refill(operator.view.places())
    await world.rounds(5)
    assert (world.phase()[0], world.status()["attempt"]) == ("Provisioning", 1)
    assert world.made("rayclusters") == 1


@pytest.mark.parametrize("problem", ["refused", "not installed"])
async def test_what_cannot_be_read_is_said_once_and_what_can_be_is_served(
    world: World, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    world.settings = SETTINGS.model_copy(update={"namespaces": (NAMESPACE, "other")})
    world.add_job()
    if problem == "refused":
        world.kube.refusals["GET", "pods"] = REFUSED
    else:
        world.kube.missing.add("pods")
    operator = await world.start_operator()
    await world.until(lambda: world.made("rayclusters"), "the job is served")
    await operator.view.refill(list(operator.view.failures))
    said = [record.getMessage() for record in caplog.records if "cannot read pods" in record.getMessage()]
    assert len(said) == 2
    assert {namespace for namespace in (NAMESPACE, "other") if any(repr(namespace) in text for text in said)} == {
        NAMESPACE,
        "other",
    }
    world.kube.refusals.clear()
    world.kube.missing.clear()
    await operator.view.refill(list(operator.view.failures))
    assert not operator.view.failures
    assert operator.view.restored[NAMESPACE].is_set(), "its watch begins again"


async def test_the_first_list_waits_for_an_api_server_that_does_not_answer(world: World) -> None:
    world.kube.refusals["GET", "pods"] = (503, "ServiceUnavailable", "overloaded")
    world.add_job()
    starting = asyncio.create_task(world.start_operator(working=False))
    await world.until(lambda: any(seen.path.endswith("/pods") for seen in world.kube.requests), "it asks", nudge=False)
    assert not starting.done()
    world.kube.refusals.clear()
    await world.until(starting.done, "it starts", nudge=False)


async def test_a_list_whose_state_is_forgotten_meanwhile_is_begun_again(world: World) -> None:
    for number in range(250):
        add(world, number, phase=Phase.SUCCEEDED)
    world.kube.expires = 1
    operator = await world.start_operator(working=False)
    assert len(operator.cache.keys("finetunejobs")) == 250
    assert not operator.view.failures


async def test_jobs_that_have_ended_are_not_looked_at_unless_time_has_something_to_do_with_them(world: World) -> None:
    ended = {"completionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1, "phase": "Succeeded"}
    for name, spec in {"old": {"ttlSecondsAfterFinished": None}, "young": {"ttlSecondsAfterFinished": 10**6}}.items():
        world.kube.put("finetunejobs", raw_job(metadata={"name": name, "uid": name}, spec=spec, status=ended))
    operator = await world.start_operator(working=False)
    operator.view.add_all()
    assert len(operator.queue) == 1
