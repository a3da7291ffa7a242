"""Objects that others have made under the names of a job's, and pods that ask for more while the job is suspended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.support.builders import KEYS, NAMESPACE, OTHER_UID, UID, finished_progress, make_job, merge, raw_progress
from tests.support.policy_cases import env
from tests.system.world import Object, World, bring_up, run_to_the_end

from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.storage import build_output_claim

pytestmark = pytest.mark.sampled(5)

OWN_CONFIG: Object = build_config_map(make_job())
KEPT: Object = build_output_claim(make_job()) or {}
OWNED: Object = build_output_claim(make_job(spec={"output": {"deleteWithJob": True}})) or {}


def without_owner(manifest: Object) -> Object:
    return manifest | {"metadata": {key: value for key, value in manifest["metadata"].items() if key != "ownerReferences"}}


def with_owner(manifest: Object, uid: str) -> Object:
    (owner,) = manifest["metadata"]["ownerReferences"]
    return merge(manifest, {"metadata": {"ownerReferences": [owner | {"uid": uid}]}})


OTHER_DATA = {"data": {"config.yaml": "General: {base_model: gpt2, config: {trust_remote_code: true}}\n"}}
TAKEN: list[Any] = [
    pytest.param("configmaps", merge(OWN_CONFIG, OTHER_DATA), {}, "its data is another", id="config with a forged owner"),
    pytest.param("configmaps", without_owner(OWN_CONFIG), {}, f"do not have the UID {UID}", id="config without an owner"),
    pytest.param("configmaps", with_owner(OWN_CONFIG, OTHER_UID), {}, f"do not have the UID {UID}", id="config of another"),
    pytest.param("configmaps", OWN_CONFIG | {"immutable": None}, {}, "not immutable", id="config that may change yet"),
    pytest.param("configmaps", OWN_CONFIG | {"binaryData": {"x": ""}}, {}, "its data is another", id="config with more"),
    pytest.param(
        "persistentvolumeclaims", merge(KEPT, {"metadata": {"labels": None}}), {}, f"is not {UID}", id="claim of nobody"
    ),
    pytest.param(
        "persistentvolumeclaims",
        merge(KEPT, {"metadata": {"labels": {"llmonray.dev/finetunejob-uid": OTHER_UID}}}),
        {},
        f"is not {UID}",
        id="claim of an earlier job of the name",
    ),
    pytest.param(
        "persistentvolumeclaims",
        without_owner(OWNED),
        {"output": {"deleteWithJob": True}},
        f"do not have the UID {UID}",
        id="claim that would not go with the job",
    ),
    pytest.param(
        "persistentvolumeclaims",
        merge(KEPT, {"spec": {"accessModes": ["ReadWriteMany"]}}),
        {},
        "its accessModes are not",
        id="claim of another kind",
    ),
]


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("plural", "theirs", "spec", "words"), TAKEN)
async def test_an_object_of_another_is_never_taken_for_the_jobs_own(
    world: World, plural: str, theirs: Object, spec: Object, words: str
) -> None:
    world.kube.put(plural, theirs)
    world.add_job(spec=spec)
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", "NameConflict"), "it says so")
    assert words in world.status()["message"]
    assert f"{theirs['kind']} {theirs['metadata']['name']} exists" in world.status()["message"]
    await world.rounds(3)
    assert world.made("rayclusters") == 0
    world.kube.remove(plural, (NAMESPACE, theirs["metadata"]["name"]))
    await run_to_the_end(world, raw_progress(), finished_progress())


@pytest.mark.parametrize(
    ("plural", "ours"),
    [
        ("configmaps", OWN_CONFIG),
        ("persistentvolumeclaims", merge(KEPT, {"spec": {"resources": {"requests": {"storage": "900Gi"}}}})),
    ],
    ids=["the same config", "a claim that was enlarged"],
)
async def test_an_object_that_was_made_before_is_used_again(world: World, plural: str, ours: Object) -> None:
    world.kube.put(plural, ours)
    world.add_job()
    await world.start_operator()
    await run_to_the_end(world, raw_progress(), finished_progress())
    assert world.made(plural) == 0


@pytest.mark.parametrize(
    "guess",
    [
        lambda name: f"{name}-{UID}",
        lambda name: f"{name}-{UID}-{KEYS.current_id}",
        lambda name: f"{name}-{UID}-{KEYS.current_id}-1",
    ],
)
async def test_a_secret_that_was_made_beforehand_is_not_the_one_of_the_cluster(world: World, guess: Callable[[str], str]) -> None:
    """All that anybody can know before the operator makes it is the job's UID, and the id of the key of earlier jobs."""
    forged = {"auth_token": "a25vd24="}
    world.kube.put("secrets", {"metadata": {"namespace": NAMESPACE, "name": guess("demo")}, "data": forged, "immutable": True})
    world.add_job()
    await world.start_operator()
    await bring_up(world)
    (cluster,) = world.kube.objects["rayclusters"].values()
    used = world.kube.objects["secrets"][NAMESPACE, cluster["spec"]["authOptions"]["secretName"]]
    assert used["data"] != forged
    assert used["metadata"]["ownerReferences"][0]["uid"] == UID


@pytest.mark.parametrize("name", ["PYTHONPATH", "EVIL_HOOK"])
async def test_pods_that_were_changed_between_attempts_are_held_to_the_policy_again(world: World, name: str) -> None:
    """The API server lets head and workers be changed while a job is suspended."""
    world.add_job(spec={"retryPolicy": {"maxAttempts": 3, "backoffSeconds": 0}})
    await world.start_operator()
    await bring_up(world)
    world.change_spec(suspend=True)
    world.ray_says("STOPPED")
    await world.until(lambda: world.phase()[0] == "Suspended", "it is suspended")
    world.change_spec(suspend=False, **env(name))
    await world.until(lambda: world.phase() == ("Pending", "CreationRefused"), "its pods are not made")
    assert f"workers.env: {name} is " in world.status()["message"]
    await world.rounds(3)
    assert world.made("rayclusters") == 1
    world.change_spec(**env("OMP_NUM_THREADS"))
    await world.until(lambda: world.made("rayclusters") == 2, "it goes on once that is taken back")
