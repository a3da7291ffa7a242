"""What the operator makes of problem: refusals, silence, conflicts, foreign objects, jobs that go."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, OTHER_UID, UID, begun, finished_progress, merge, raw_progress
from tests.system.world import CLUSTER, JOB, READY, WORKER, World, bring_up, run_to_the_end, run_training

from finetune_operator.api.v1alpha1 import Phase
from finetune_operator.decide.lifecycle import TAKEN_UP_SECONDS

pytestmark = pytest.mark.sampled(5)

CHILDREN = ("persistentvolumeclaims", "secrets", "configmaps", "rayclusters")
INVALID = {"config": {"Training": {"device": "HPU"}}}


async def started(world: World, **parts: Any) -> World:
    world.add_job(**parts)
    await world.start_operator()
    return world


def children(world: World) -> int:
    return sum(len(world.kube.objects[plural]) for plural in CHILDREN)


BEING_DELETED = {"deletionTimestamp": "2026-01-02T03:04:05Z", "finalizers": ["somebody/else"]}


async def test_a_stored_spec_that_is_invalid_ends_the_job_and_makes_nothing(world: World) -> None:
    await started(world, spec=merge(INVALID, {"output": {"size": "ten"}}))
    await world.until(lambda: world.phase() == ("Failed", "InvalidSpec"), "it fails")
    assert "spec.config.Training.device" in world.status()["message"]
    assert "spec.output.size" in world.status()["message"]
    assert children(world) == 0
    assert len(world.kube.writes()) == 1
    await world.rounds(3)
    assert len(world.kube.writes()) == 1


async def test_a_literal_token_in_an_old_object_is_refused_and_not_repeated(world: World) -> None:
    await started(world, spec={"config": {"General": {"config": {"use_auth_token": "hf_verysecret"}}}})
    await world.until(lambda: world.phase() == ("Failed", "InvalidSpec"), "it fails")
    await world.until(lambda: world.made("events"), "it is told")
    world.kube.objects["finetunejobs"][JOB].pop("spec")
    assert "hf_verysecret" not in json.dumps([list(found.values()) for found in world.kube.objects.values()])


async def test_a_spec_that_became_invalid_under_a_running_job_leaves_no_cluster_behind(world: World) -> None:
    """As after an upgrade of the operator that took a value away."""
    await started(world)
    world.ray.obeys = True
    await run_training(world, raw_progress())
    world.change_spec(**INVALID)
    await world.until(lambda: world.phase() == ("Failed", "InvalidSpec"), "it fails")
    await world.until(lambda: not world.kube.objects["rayclusters"], "its cluster is deleted", seconds=5)


async def test_a_poison_job_stops_no_other(world: World) -> None:
    world.add_job(metadata={"name": "poison", "uid": OTHER_UID}, status={"phase": "FromAnotherRelease"})
    await started(world)
    await run_training(world, raw_progress())
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "the job succeeds")


@pytest.mark.parametrize("when", ["provisioning", "running"])
async def test_a_job_that_is_deleted_is_written_no_more(world: World, when: str) -> None:
    await started(world)
    await (bring_up(world) if when == "provisioning" else run_training(world, raw_progress()))
    await world.until(lambda: world.made("events") == (3 if when == "running" else 2), "all is told")
    world.kube.remove("finetunejobs", JOB)
    before = len(world.gate.labels)
    world.ray_says("SUCCEEDED", progress=finished_progress())
    world.kuberay_says(merge(READY, {"readyWorkerReplicas": 1}))
    await world.rounds(10)
    assert world.gate.labels[before:] == []


async def test_a_job_that_is_being_deleted_gets_nothing_made(world: World) -> None:
    await started(world, metadata=BEING_DELETED)
    await world.until(lambda: world.phase() == ("Cancelled", "CancelledByUser"), "it ends")
    await world.rounds(5)
    assert world.gate.labels == ["status Cancelled", "POST events"]


async def test_a_job_that_somebody_holds_back_from_its_deletion_does_not_run_on(world: World) -> None:
    await started(world, spec={"clusterTTLSeconds": {"onFailure": 3600}})
    world.ray.obeys = True
    await run_training(world, raw_progress())
    job = world.kube.objects["finetunejobs"][JOB]
    world.kube.put("finetunejobs", job | {"metadata": job["metadata"] | BEING_DELETED})
    await world.until(lambda: world.phase() == ("Cancelled", "CancelledByUser"), "it ends", nudge=False)
    await world.until(lambda: not world.kube.objects["rayclusters"], "its cluster is deleted", nudge=False)
    assert world.status()["message"] == "the job is being deleted"


async def test_a_deletion_that_no_watch_has_told_yet_is_seen_before_anything_is_made(world: World) -> None:
    world.add_job(status=begun())
    operator = await world.start_operator(working=False)
    world.kube.remove("finetunejobs", JOB)
    assert operator.cache.get("finetunejobs", JOB) is not None
    assert await operator.reconciler.reconcile(JOB) is None
    assert world.gate.labels == []


async def test_a_dashboard_that_is_down_never_fails_a_job(world: World) -> None:
    await started(world)
    await run_training(world, raw_progress())
    assert world.operator is not None
    world.head.down = True
    asked = len(world.ray.requests)
    await world.until(lambda: len(world.ray.requests) > asked + 1, "it is asked in vain")
    world.operator.ahead += timedelta(seconds=15)
    await world.until(lambda: "does not answer" in world.status()["message"], "it says so")
    await world.rounds(10)
    assert world.phase()[0] == "Running"
    world.head.down = False
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "it goes on")


async def test_a_dashboard_that_is_down_from_the_start_is_waited_for(world: World) -> None:
    await started(world)
    world.head.down = True
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    world.kuberay_says()
    await world.rounds(10)
    assert world.phase()[0] == "Provisioning"
    world.head.down = False
    await world.until(world.submitted, "the driver is submitted")
    assert len(world.ray.accepted) == 1


async def test_a_status_that_somebody_else_wrote_first_is_decided_anew(world: World) -> None:
    await started(world)
    await bring_up(world)
    job = world.kube.objects["finetunejobs"][JOB]
    await world.stop_operator()
    await world.start_operator(watching=False)
    world.kube.put("finetunejobs", job | {"metadata": job["metadata"] | {"labels": {"touched": "yes"}}})
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: world.phase()[0] == "Succeeded", "an end is decided on what the API server says now")
    assert world.kube.objects["finetunejobs"][JOB]["metadata"]["labels"] == {"touched": "yes"}


async def test_a_write_that_met_a_newer_version_is_made_again_even_when_the_watch_is_silent(world: World) -> None:
    await started(world)
    await bring_up(world)
    assert world.operator is not None
    world.operator.watching = False
    before = len(world.kube.writes())
    world.kube.refusals["PATCH", "finetunejobs"] = (409, "Conflict", "the object has been modified")
    world.ray_says("RUNNING", progress=raw_progress())
    await world.until(lambda: len(world.kube.writes()) > before, "a write is refused")
    del world.kube.refusals["PATCH", "finetunejobs"]
    await world.until(lambda: world.phase()[0] == "Running", "it is written again")


async def test_a_missing_claim_is_named_and_waited_for(world: World) -> None:
    world.add_job("existing_claims", metadata={"name": "demo"})
    for name in ("data", "models"):
        world.kube.put("persistentvolumeclaims", {"metadata": {"namespace": NAMESPACE, "name": name}})
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Pending", "ClaimNotFound"), "it is named")
    assert "'out' (spec.output.persistentVolumeClaim)" in world.status()["message"]
    await world.rounds(3)
    assert children(world) == 2
    world.kube.put("persistentvolumeclaims", {"metadata": {"namespace": NAMESPACE, "name": "out"}})
    await world.until(lambda: world.made("rayclusters"), "the cluster is made once it is there")
    assert world.made("persistentvolumeclaims") == 0


async def test_without_kuberay_a_job_waits_and_says_why(world: World) -> None:
    world.kube.missing.add("rayclusters")
    await started(world)
    await world.until(lambda: world.phase() == ("Pending", "KubeRayNotInstalled"), "it says why")
    world.kube.missing.clear()
    await run_to_the_end(world, raw_progress(), finished_progress())


async def test_kuberay_that_is_away_is_told_after_some_seconds_and_the_job_goes_on_when_it_is_back(world: World) -> None:
    world.add_job()
    operator = await world.start_operator()
    await world.until(lambda: world.phase() == ("Provisioning", "ClusterStarting"), "the cluster is made")
    operator.ahead = timedelta(seconds=TAKEN_UP_SECONDS)
    await world.until(lambda: world.phase() == ("Provisioning", "KubeRayNotResponding"), "it is told")
    assert "is the operator of KubeRay running?" in world.status()["message"]
    await bring_up(world)


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        (403, 'secrets "x" is forbidden: exceeded quota: team, requested: count/secrets=1', "QuotaExceeded"),
        (403, 'User "finetune" cannot create resource "secrets"', "CreationRefused"),
        (422, "admission webhook denied the request: no", "CreationRefused"),
    ],
)
async def test_a_refusal_that_a_user_can_mend_is_told_in_its_words(world: World, status: int, words: str, reason: str) -> None:
    world.kube.refusals["POST", "secrets"] = (status, "Forbidden", words)
    await started(world)
    await world.until(lambda: world.phase() == ("Pending", reason), "it says why")
    assert words in world.status()["message"]
    assert world.made("rayclusters") == 0, "the cluster is made last"
    world.kube.refusals.clear()
    await world.until(lambda: world.phase()[0] == "Provisioning", "it goes on")


async def test_a_refused_creation_is_not_repeated_at_every_event(world: World) -> None:
    world.kube.refusals["POST", "rayclusters"] = (403, "Forbidden", "exceeded quota: team")
    await started(world)
    await world.until(lambda: world.phase() == ("Pending", "QuotaExceeded"), "it says why")
    for number in range(30):
        world.kube.put("pods", merge(WORKER, {"metadata": {"annotations": {"event": str(number)}}}))
        await world.wait(0.1)
    assert world.gate.labels.count("POST rayclusters") <= 5
    assert world.phase() == ("Pending", "QuotaExceeded"), "the reason stays while it is not repeated"
    world.kube.refusals.clear()
    await world.until(lambda: world.phase()[0] == "Provisioning", "it goes on", nudge=False)


async def test_an_overloaded_api_server_is_no_state_of_a_job(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.kube.refusals["POST", "rayclusters"] = (429, "TooManyRequests", "slow down")
    await started(world)
    await world.until(lambda: len([label for label in world.gate.labels if label == "POST rayclusters"]) > 2, "it is tried again")
    assert world.phase() == ("Pending", "Accepted")
    world.kube.refusals.clear()
    await run_to_the_end(world, raw_progress(), finished_progress())
    assert "failed" in caplog.text


async def test_a_refused_event_holds_nothing_up(world: World) -> None:
    world.kube.refusals["POST", "events"] = (403, "Forbidden", "no events here")
    await started(world)
    await run_to_the_end(world, raw_progress(), finished_progress())


def foreign_cluster(world: World) -> None:
    owners = [{"uid": OTHER_UID, "controller": True, "kind": "FinetuneJob", "name": "demo"}]
    metadata = {"namespace": NAMESPACE, "name": CLUSTER[1], "ownerReferences": owners}
    labels = {"llmonray.dev/finetunejob": "demo"}
    spec = {"authOptions": {"secretName": "theirs"}}
    world.kube.put("rayclusters", {"metadata": metadata | {"labels": labels}, "spec": spec, "status": READY})


async def test_a_foreign_cluster_of_the_same_name_is_neither_used_nor_deleted(world: World) -> None:
    foreign_cluster(world)
    await started(world)
    await world.until(lambda: world.phase() == ("Failed", "NameConflict"), "it fails")
    await world.rounds(3)
    assert world.kube.get("rayclusters", CLUSTER) is not None
    assert world.ray.accepted == []


async def test_a_foreign_cluster_is_shown_no_token(world: World) -> None:
    foreign_cluster(world)
    await started(world)
    await world.until(lambda: world.phase() == ("Failed", "NameConflict"), "it fails")
    assert world.ray.requests == []


async def test_a_failed_driver_is_explained_by_the_trainer(world: World) -> None:
    await started(world)
    await run_training(world, raw_progress())
    failure = {"reason": "LossNotFinite", "message": "the loss is nan at step 12"}
    world.ray_says("FAILED", "exit code 6", raw_progress(state="failed", failure=failure))
    await world.until(lambda: world.phase() == ("Failed", "LossNotFinite"), "it fails")
    assert world.status()["message"] == "the loss is nan at step 12"
    assert world.made("persistentvolumeclaims") == len(world.kube.objects["persistentvolumeclaims"]) == 1


async def test_problem_of_a_pod_reaches_the_job_and_that_of_another_jobs_pod_does_not(world: World) -> None:
    await started(world)
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    words = "0/3 nodes are available: 3 Insufficient gpu.intel.com/i915."
    waits = {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": words}]}
    theirs = {"name": "theirs", "labels": {"llmonray.dev/finetunejob-uid": OTHER_UID}}
    world.kube.put("pods", merge(WORKER, {"metadata": theirs, "status": waits | {"containerStatuses": None}}))
    await world.rounds(3)
    assert world.phase() == ("Provisioning", "ClusterStarting")
    world.kube.put("pods", merge(WORKER, {"status": waits}))
    await world.until(lambda: world.phase() == ("Provisioning", "Unschedulable"), "it says why")
    assert words in world.status()["message"]


async def test_a_refused_submission_is_told_and_tried_again(world: World) -> None:
    await started(world)
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    world.head.refusal = (500, "No available agent to submit job, please try again later.")
    world.kuberay_says()
    await world.until(lambda: world.phase() == ("Provisioning", "SubmissionFailed"), "it says why")
    assert "No available agent" in world.status()["message"]
    world.head.refusal = None
    await world.until(world.submitted, "the driver is submitted")
    assert len(world.ray.accepted) == 1


async def test_a_submission_that_gets_no_answer_is_not_repeated_without_pause(world: World) -> None:
    """The dashboard knows nothing of the id, and its POST is cut off: each round must wait like any other failure."""
    world.add_job(status=begun(Phase.PROVISIONING))
    await world.start_operator()
    await world.until(lambda: world.made("rayclusters"), "the cluster is made")
    world.head.refusal = (503, "no endpoints available")
    world.kuberay_says()
    await world.until(world.ray.posts, "it is submitted")
    before = len(world.ray.posts())
    await world.wait(0.4)
    assert len(world.ray.posts()) - before <= 2


async def test_progress_of_another_attempt_is_not_shown(world: World) -> None:
    await started(world)
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress(attempt=7))
    await world.until(lambda: world.phase() == ("Running", "TrainingStarting"), "it runs")
    await world.rounds(3)
    assert "progress" not in world.status()


async def test_a_new_job_of_the_same_name_has_everything_of_its_own(world: World) -> None:
    await started(world)
    await run_training(world, raw_progress())
    world.kube.remove("finetunejobs", JOB)
    world.add_job(metadata={"uid": OTHER_UID})
    await world.until(lambda: world.status().get("ray", {}).get("cluster") == "demo-99999-1", "it begins anew")
    await world.until(lambda: world.made("rayclusters") == 2, "it has a cluster of its own")
    secrets = world.kube.objects["secrets"]
    assert {name.rpartition("-")[0] for _namespace, name in secrets} == {f"demo-{UID}", f"demo-{OTHER_UID}"}
