"""One job has one run: nothing that lives is given up, whatever the watch, a label or a status says."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, finished_progress, merge, raw_progress
from tests.system.world import CLUSTER, JOB, World, bring_up, run_training

from finetune_operator.constants import JOB_LABEL
from finetune_operator.output_claims import LOOK_SECONDS
from finetune_operator.reconciler import FAILING_SECONDS

pytestmark = pytest.mark.sampled(5)

FAST = {"retryPolicy": {"maxAttempts": 3, "backoffSeconds": 0}}
SECOND = (NAMESPACE, "demo-1f0c3-2")


async def training(world: World, **spec: Any) -> None:
    world.add_job(spec=FAST | spec)
    await world.start_operator()
    await run_training(world, raw_progress())


def edit_status(world: World, **changes: Any) -> None:
    """Somebody edits the stored status."""
    job = world.kube.objects["finetunejobs"][JOB]
    world.kube.put("finetunejobs", job | {"status": merge(job["status"], changes)})


def edit_labels(world: World, labels: dict[str, str]) -> None:
    """Somebody edits the labels of the current cluster."""
    cluster = world.kube.objects["rayclusters"][world.cluster]
    world.kube.put("rayclusters", cluster | {"metadata": cluster["metadata"] | {"labels": labels}})


async def finish(world: World) -> None:
    world.ray_says("SUCCEEDED", progress=finished_progress(attempt=world.status()["attempt"]))
    await world.until(lambda: world.phase()[0] == "Succeeded", "the job succeeds")
    await world.until(lambda: not world.kube.objects["rayclusters"], "no cluster is left")


async def test_a_cluster_whose_label_was_removed_runs_on_and_gets_it_back(world: World) -> None:
    await training(world)
    edit_labels(world, {})
    await world.until(lambda: _labels(world).get(JOB_LABEL) == "demo", "the label is back", nudge=False)
    await world.rounds(3)
    await finish(world)
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


async def test_a_cluster_whose_label_names_another_job_is_still_that_of_its_owner(world: World) -> None:
    await training(world)
    edit_labels(world, _labels(world) | {JOB_LABEL: "other"})
    await finish(world)
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


def _labels(world: World) -> dict[str, str]:
    labels: dict[str, str] = world.kube.objects["rayclusters"][CLUSTER]["metadata"].get("labels") or {}
    return labels


async def test_a_cluster_that_the_status_no_longer_names_is_deleted_before_the_next_attempt(world: World) -> None:
    await training(world)
    edit_status(world, ray={"cluster": "demo-1f0c3-9"})
    await world.until(lambda: world.status().get("attempt") == 2, "another attempt begins")
    assert CLUSTER not in world.kube.objects["rayclusters"], "before, not after"
    await bring_up(world)
    world.ray_says("RUNNING", progress=raw_progress(attempt=2, step=12))
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "it runs again")
    await finish(world)


async def test_a_cluster_of_an_earlier_attempt_does_not_outlive_the_job(world: World) -> None:
    await training(world)
    old = world.kube.objects["rayclusters"][CLUSTER]
    stray = {"name": SECOND[1], "labels": {}, "uid": "7c1d2e3f-0000-4000-8000-00000000abcd"}
    world.kube.put("rayclusters", old | {"metadata": old["metadata"] | stray})
    await finish(world)


async def test_a_status_that_was_wiped_starts_no_second_run_beside_the_first(world: World) -> None:
    await training(world)
    job = world.kube.objects["finetunejobs"][JOB]
    world.kube.put("finetunejobs", {key: value for key, value in job.items() if key != "status"})
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "the run is taken up again")
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


async def test_a_kind_that_is_not_known_for_a_moment_ends_no_run(world: World) -> None:
    await training(world)
    world.kube.missing.add("rayclusters")
    assert world.operator is not None
    world.operator.cache.drop("rayclusters", world.kube.objects["rayclusters"][CLUSTER])
    await world.rounds(5)
    assert world.phase()[0] == "Running"
    world.kube.missing.clear()
    await world.until(lambda: world.operator and world.operator.cache.get("rayclusters", CLUSTER), "it is seen again")
    await finish(world)
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


async def test_retrying_without_any_attempt_on_record_goes_on(world: World) -> None:
    await training(world)
    edit_status(world, phase="Retrying", attemptHistory=None)
    await world.until(lambda: world.status().get("attempt") == 2, "another attempt begins")
    assert world.status()["attemptHistory"][0]["reason"] == "HeadLost"


async def test_a_status_whose_attempt_was_removed_begins_anew(world: World) -> None:
    await training(world)
    edit_status(world, phase="Retrying", attemptHistory=None, attempt=None)
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "the run is taken up again")
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


async def test_a_status_of_another_release_is_read_as_far_as_possible(world: World) -> None:
    await training(world)
    edit_status(world, phase="Dreaming", checkpoint={"step": "many", "path": "x" * 5000}, message="m" * 9999)
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "it is taken up again")
    await finish(world)
    assert (world.made("rayclusters"), len(world.ray.accepted)) == (1, 1)


async def test_a_job_with_an_unreadable_status_can_be_cancelled(world: World) -> None:
    world.ray.obeys = True
    await training(world)
    edit_status(world, phase="Dreaming")
    world.change_spec(cancel=True)
    await world.until(lambda: world.phase() == ("Cancelled", "CancelledByUser"), "it is cancelled")


async def test_a_cluster_that_is_kept_after_a_cancellation_runs_no_driver(world: World) -> None:
    await training(world, clusterTTLSeconds={"onFailure": 3600})
    world.change_spec(cancel=True)
    await world.until(lambda: world.head.stops, "the driver is asked to stop", nudge=False)
    assert world.phase() == ("Running", "CancelledByUser")
    world.ray_says("STOPPED", progress=raw_progress(state="stopped"))
    await world.until(lambda: world.phase() == ("Cancelled", "CancelledByUser"), "then it is over", nudge=False)
    await world.rounds(3)
    assert CLUSTER in world.kube.objects["rayclusters"]
    assert world.condition("Finished")["status"] == "True"
    assert [world.condition(type_)["status"] for type_ in ("Submitted", "ClusterReady", "Complete")] == ["False"] * 3
    assert world.status()["ray"]["workers"] == "0/2"


async def test_an_output_claim_that_is_deleted_is_told_at_once_and_the_result_is_kept_for_a_copy(world: World) -> None:
    await training(world)
    claim = next(iter(world.kube.objects["persistentvolumeclaims"].values()))
    deleted = claim["metadata"] | {"deletionTimestamp": "2026-01-02T03:04:05Z"}
    world.kube.put("persistentvolumeclaims", claim | {"metadata": deleted})
    assert world.operator is not None
    world.operator.ahead = timedelta(seconds=LOOK_SECONDS)
    await world.until(lambda: world.phase() == ("Running", "OutputClaimDeleting"), "it is told")
    assert world.condition("OutputClaimDeleting")["status"] == "True"
    await world.until(lambda: "OutputClaimDeleting" in _warnings(world), "there is an event")
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: "the run is complete" in world.status()["message"], "it has ended, and is kept")
    await world.rounds(3)
    assert world.phase()[0] == "Running"
    assert "tar -C /output -c demo-" in world.status()["message"]
    assert CLUSTER in world.kube.objects["rayclusters"]


def _warnings(world: World) -> list[str]:
    return [event["reason"] for event in world.kube.objects["events"].values() if event["type"] == "Warning"]


async def test_a_call_that_fails_for_long_is_in_the_message_until_it_succeeds(world: World) -> None:
    world.kube.refusals["POST", "rayclusters"] = (500, "InternalError", "failed calling webhook guard.example")
    world.add_job()
    operator = await world.start_operator()
    await world.until(lambda: any(seen.path.endswith("rayclusters") for seen in world.kube.writes()), "it is tried")
    operator.ahead = timedelta(seconds=FAILING_SECONDS)
    await world.until(lambda: "failed calling webhook" in world.status().get("message", ""), "it is told", nudge=False)
    before = len(world.kube.writes())
    await world.rounds(3)
    patches = [seen for seen in world.kube.writes()[before:] if seen.method == "PATCH"]
    assert patches == [], "it is told once"
    del world.kube.refusals["POST", "rayclusters"]
    await world.until(lambda: world.phase()[0] == "Provisioning", "it goes on")
    assert "webhook" not in world.status()["message"]


async def test_a_deletion_that_is_refused_is_in_the_message_of_a_job_that_has_ended(world: World) -> None:
    world.kube.refusals["DELETE", "rayclusters"] = (403, "Forbidden", "you may not delete rayclusters")
    await training(world)
    world.ray_says("SUCCEEDED", progress=finished_progress())
    await world.until(lambda: "you may not delete" in world.status().get("message", ""), "it is told", nudge=False)
    assert world.phase()[0] == "Succeeded"
    del world.kube.refusals["DELETE", "rayclusters"]
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted")
    await world.until(lambda: "you may not delete" not in world.status()["message"], "it is over")


async def test_a_job_in_flight_keeps_the_pods_that_it_began_with_when_the_operator_is_configured_anew(world: World) -> None:
    await training(world)
    first = world.kube.objects["rayclusters"][CLUSTER]
    await world.stop_operator()
    other = {"trainer_image": "registry.example/other:2", "image_pull_policy": "Always"}
    sizes = {"head_cpu": "7", "head_memory": "77Gi", "worker_memory": "99Gi"}
    world.settings = world.settings.model_copy(update=other | sizes)
    await world.start_operator()
    world.kube.remove("rayclusters", CLUSTER)
    await world.until(lambda: SECOND in world.kube.objects["rayclusters"], "another attempt begins")
    second = world.kube.objects["rayclusters"][SECOND]
    assert _containers(second) == _containers(first)


def _containers(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [cluster["spec"]["headGroupSpec"], *cluster["spec"]["workerGroupSpecs"]]
    return [group["template"]["spec"]["containers"][0] for group in groups]


OTHER_DEFAULTS: dict[str, Any] = {
    "retryPolicy": {"maxAttempts": 1, "backoffSeconds": 0, "maxBackoffSeconds": 0},
    "stallTimeoutSeconds": 1,
    "clusterTTLSeconds": {"onSuccess": 0, "onFailure": 3600},
}
"""Defaults that a job may have begun with under another release."""


async def test_what_this_release_does_by_default_is_stored_when_the_first_attempt_begins(world: World) -> None:
    world.add_job(spec={"retryPolicy": {"maxAttempts": 7}})
    await world.start_operator()
    await bring_up(world)
    stored = world.status()["defaults"]
    assert stored["retryPolicy"] == {"maxAttempts": 3, "backoffSeconds": 10, "maxBackoffSeconds": 300}
    assert (stored["stallTimeoutSeconds"], stored["clusterTTLSeconds"]) == (900, {"onSuccess": 0, "onFailure": 0})


@pytest.mark.parametrize("spec", [{}, {"retryPolicy": {"maxAttempts": 2}}], ids=["nothing", "more attempts"])
async def test_a_job_in_flight_keeps_the_defaults_of_the_release_that_it_began_with(world: World, spec: Any) -> None:
    """But for what the spec says itself."""
    world.add_job(spec=spec)
    await world.start_operator()
    await run_training(world, raw_progress())
    await world.stop_operator()
    edit_status(world, defaults=OTHER_DEFAULTS)
    await world.start_operator()
    await world.until(lambda: world.phase() == ("Running", "Stalled"), "the stall of its release is shown")
    world.ray_says("FAILED", "exit code 137")
    if spec:
        await world.until(lambda: world.status().get("attempt") == 2, "its own attempt begins, without a pause")
        await bring_up(world)
        world.ray_says("FAILED", "exit code 137")
    await world.until(lambda: world.phase()[0] == "Failed", "no attempt is left")
    await world.rounds(5)
    assert world.kube.objects["rayclusters"], "its cluster stays to be looked at"


async def test_two_operators_at_once_make_one_cluster_and_submit_one_driver_for_each_attempt(world: World) -> None:
    await world.start_operator()
    await world.start_another_operator()
    world.add_job(spec=FAST)
    await run_training(world, raw_progress())
    world.kube.remove("rayclusters", CLUSTER)
    await world.until(lambda: world.status().get("attempt") == 2, "another attempt begins")
    await bring_up(world)
    await finish(world)
    made = [obj["metadata"]["name"] for kind, obj in world.kube.created if kind == "rayclusters"]
    assert made == [CLUSTER[1], SECOND[1]]
    assert [item["submission_id"][-3:] for item in world.ray.accepted] == ["-a1", "-a2"]
