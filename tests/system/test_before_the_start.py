"""What is looked at before anything is made for a job: what it needs, and what the administrator allows."""

from __future__ import annotations

from time import monotonic
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, SETTINGS, finished_progress, raw_progress
from tests.support.chart import namespace_rules, request_right, rights
from tests.system.world import JOB, World, run_to_the_end, run_training

from finetune_operator.api.policy import Policy
from finetune_operator.shared_reads import NODES_SECONDS

pytestmark = pytest.mark.sampled(5)

Object = dict[str, Any]
I915 = "gpu.intel.com/i915"
NEEDS = {
    "output": {"size": None, "persistentVolumeClaim": {"claimName": "out"}},
    "dataset": {"configMap": {"name": "rows"}},
    "workers": {"priorityClassName": "training"},
}
GPU = {"device": "GPU", "resources_per_worker": {"CPU": 1, "GPU": 2}, "accelerate_mode": "GPU_DDP"}
WHOLE_CLUSTER = {("", "nodes", "list"), ("scheduling.k8s.io", "priorityclasses", "get")}
OBJECTS = {
    "persistentvolumeclaims": {"metadata": {"namespace": NAMESPACE, "name": "out"}},
    "configmaps": {"metadata": {"namespace": NAMESPACE, "name": "rows"}},
    "priorityclasses": {"metadata": {"name": "training"}},
}


def node(name: str, gpus: int) -> Object:
    return {"metadata": {"name": name}, "status": {"allocatable": {"cpu": "8", I915: str(gpus)}}}


def made(world: World) -> list[str]:
    """Kinds of what was made, but for events."""
    return [plural for plural, _obj in world.kube.created if plural != "events"]


@pytest.mark.parametrize(
    ("plural", "reason", "named"),
    [
        ("persistentvolumeclaims", "ClaimNotFound", "'out' (spec.output.persistentVolumeClaim)"),
        ("configmaps", "ConfigMapNotFound", "'rows' (spec.dataset.configMap)"),
        ("priorityclasses", "PriorityClassNotFound", "'training' (spec.workers.priorityClassName)"),
    ],
)
async def test_what_is_missing_is_named_and_the_job_goes_on_when_it_is_there(
    world: World, plural: str, reason: str, named: str
) -> None:
    for there in OBJECTS.keys() - {plural}:
        world.kube.put(there, OBJECTS[there])
    world.add_job(spec=NEEDS)
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", reason), "it is named")
    validated = world.condition("Validated")
    assert (validated["status"], validated["reason"], made(world)) == ("False", reason, [])
    assert named in validated["message"]
    assert validated["message"] == world.status()["message"]
    world.kube.put(plural, OBJECTS[plural])
    await world.until(lambda: world.made("rayclusters"), "the cluster is made")
    assert world.condition("Validated")["status"] == "True"


@pytest.mark.slow
async def test_all_that_is_missing_is_named_by_one_write_and_the_job_goes_on_by_itself(world: World) -> None:
    world.kube.put("nodes", node("small", 1))
    world.add_job(spec=NEEDS | {"config": {"Training": GPU}})
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", "ClaimNotFound"), "it is named", nudge=False)
    assert [seen.method for seen in world.kube.writes()] == ["PATCH"]
    message = world.status()["message"]
    assert all(word in message for word in ("'out'", "'rows'", "'training'", f"{I915}: 2", "the most that one has is 1"))
    for plural, obj in OBJECTS.items():
        world.kube.put(plural, obj)
    world.kube.put("nodes", node("large", 2))
    await world.until(lambda: world.made("rayclusters"), "the cluster is made", nudge=False)


async def test_jobs_that_wait_for_gpus_make_one_list_of_nodes(world: World) -> None:
    world.kube.put("nodes", node("small", 1))
    keys = [
        world.add_job(metadata={"name": f"job-{number}", "uid": f"{number:08}-uid"}, spec={"config": {"Training": GPU}})
        for number in range(20)
    ]
    began = monotonic()
    await world.start_operator()
    await world.until(lambda: {world.phase(key) for key in keys} == {("Pending", "NoSuchResource")}, "all of them say so")
    looks = sum(seen.path.endswith("/nodes") for seen in world.kube.requests)
    assert looks <= 1 + (monotonic() - began) // NODES_SECONDS


async def test_a_gpu_job_of_a_cluster_wide_install_asks_for_two_rights_more(world: World) -> None:
    world.kube.put("nodes", node("large", 2))
    world.kube.put("priorityclasses", OBJECTS["priorityclasses"])
    world.add_job(spec={"config": {"Training": GPU}, "workers": {"priorityClassName": "training"}})
    await world.start_operator()
    await run_to_the_end(world, raw_progress(), finished_progress())
    asked = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert asked - set(rights(namespace_rules())) == WHOLE_CLUSTER


async def test_an_install_of_one_namespace_asks_for_nothing_of_the_whole_cluster(world: World) -> None:
    world.settings = SETTINGS.model_copy(update={"namespaces": (NAMESPACE,)})
    world.add_job(spec={"config": {"Training": GPU}, "workers": {"priorityClassName": "training"}})
    await world.start_operator()
    await run_to_the_end(world, raw_progress(), finished_progress())
    asked = {request_right(seen.method, seen.path) for seen in world.kube.requests}
    assert asked <= set(rights(namespace_rules()))


async def test_what_the_operator_may_not_look_at_holds_no_job_up(world: World) -> None:
    for plural in ("nodes", "priorityclasses"):
        world.kube.refusals["GET", plural] = (403, "Forbidden", f"cannot get {plural} at the cluster scope")
    world.add_job(spec={"config": {"Training": GPU}, "workers": {"priorityClassName": "training"}})
    await world.start_operator()
    await run_to_the_end(world, raw_progress(), finished_progress())


STRICT = SETTINGS.model_copy(
    update={
        "policy": Policy.model_validate(
            {"allowedImagePrefixes": ["registry.example/"], "namespaces": {"free": {"allowedImagePrefixes": []}}}
        )
    }
)
OWN_CODE = {"config": {"General": {"config": {"trust_remote_code": True}}}}


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        (OWN_CODE, "config.General.config.trust_remote_code: the administrator does not allow"),
        ({"image": "elsewhere.example/trainer:1"}, "image: the administrator allows images that begin with registry.example/"),
        ({"workers": {"labels": {"my label": "x"}}}, "workers.labels: 'my label' is no qualified name"),
        ({"head": {"annotations": {"a/b/c": "x"}}}, "head.annotations: 'a/b/c' is no qualified name"),
        ({"workers": {"nodeSelector": {"-pool": "x"}}}, "workers.nodeSelector: '-pool' is no qualified name"),
    ],
)
async def test_a_job_that_may_not_run_fails_before_anything_is_made(world: World, spec: Object, says: str) -> None:
    world.settings = STRICT
    world.add_job(spec=spec)
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Failed", "InvalidSpec"), "it is refused")
    assert says in world.status()["message"]
    await world.rounds(3)
    assert len(world.kube.writes()) == 1
    assert made(world) == []


async def test_a_namespace_may_do_what_others_may_not(world: World) -> None:
    world.settings = STRICT
    key = world.add_job(metadata={"namespace": "free"}, spec={"image": "elsewhere.example/trainer:1"})
    await world.start_operator()
    await world.until(lambda: world.made("rayclusters"), "its cluster is made")
    assert world.phase(key)[0] in {"Pending", "Provisioning"}


async def test_a_job_that_has_begun_is_not_failed_by_a_later_policy(world: World) -> None:
    world.add_job(spec={"image": "elsewhere.example/trainer:1"})
    await world.start_operator()
    await run_training(world, raw_progress())
    await world.stop_operator()
    world.settings = STRICT
    await world.start_operator()
    await world.rounds(5)
    assert world.phase(JOB)[0] == "Running"
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "it ends as it would have")
