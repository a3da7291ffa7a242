"""A job that begins from an earlier one: what it waits for, what is stored, and that it lives on without the other."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import NAMESPACE, OTHER_UID, UID, finished_progress, raw_job, raw_progress
from tests.support.chart import namespace_rules, request_right, rights
from tests.system.world import CLUSTER, World, run_to_the_end

pytestmark = pytest.mark.sampled(5)

Object = dict[str, Any]
FOLDER = f"first-{OTHER_UID}"
CLAIM: Object = {"metadata": {"namespace": NAMESPACE, "name": "first-out"}}
STATUS: Object = {
    "phase": "Failed",
    "startTime": "2026-01-01T00:00:00Z",
    "output": {"persistentVolumeClaim": "first-out", "path": FOLDER},
}
PLACE = {"job": "first", "uid": OTHER_UID, "persistentVolumeClaim": "first-out", "path": FOLDER}


def put_first(world: World, **changes: Any) -> None:
    """The earlier job; the operator under test has nothing to do for it."""
    raw = raw_job(metadata={"name": "first", "uid": OTHER_UID}, spec={"ttlSecondsAfterFinished": None}, status=STATUS | changes)
    world.kube.put("finetunejobs", raw)


def asked(world: World) -> str:
    """The command line of the driver."""
    (body,) = [job["entrypoint"] for job in world.ray.accepted]
    return str(body)


async def test_it_waits_for_the_job_its_end_and_its_claim_and_says_so(world: World) -> None:
    world.add_job(spec={"resumeFrom": "first"})
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", "JobNotFound"), "the job is missed")
    put_first(world, phase="Suspended")
    world.change_spec((NAMESPACE, "first"), suspend=True)
    await world.until(lambda: world.phase() == ("Pending", "ClaimNotFound"), "the claim is missed")
    assert "'first-out' (spec.resumeFrom)" in world.status()["message"]
    assert world.made("rayclusters") == 0
    world.kube.put("persistentvolumeclaims", CLAIM)
    await run_to_the_end(world, raw_progress(), finished_progress())
    assert world.status()["resume"] == PLACE
    requests = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert requests <= set(rights(namespace_rules()))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("label", ["status Pending", "POST persistentvolumeclaims", "POST rayclusters", "POST job"])
async def test_once_stored_the_place_outlives_the_earlier_job_and_a_crash(world: World, label: str, after: bool) -> None:
    put_first(world)
    world.kube.put("persistentvolumeclaims", CLAIM)
    world.add_job(spec={"resumeFrom": "first"})
    world.gate.cut_at_label, world.gate.cut_after = label, after
    await world.start_operator()
    await world.until(lambda: world.status().get("attempt"), "the first attempt is stored")
    assert world.status()["resume"] == PLACE
    world.kube.remove("finetunejobs", (NAMESPACE, "first"))
    await run_to_the_end(world, raw_progress(), finished_progress())
    assert world.restarts == 1
    assert f"--resume_from /resume/{FOLDER} " in asked(world)
    assert f"--run_name {UID} " in asked(world)
    (cluster,) = [obj for plural, obj in world.kube.created if plural == "rayclusters"]
    assert cluster["metadata"]["name"] == CLUSTER[1]
    for group in (cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]):
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert {"name": "resume", "mountPath": "/resume", "readOnly": True} in mounts
