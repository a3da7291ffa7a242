"""A FinetuneJob on CPU workers, from ``kubectl apply`` to an adapter on a volume."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from tests.e2e.conftest import Release
from tests.support import cluster
from tests.support.jobs import MODEL, WITH_WORDS, finetune_job, tool_pod
from tests.support.kubectl import Kubectl, Object, Watch, wait_until, watching

NAME = "cpu-ddp"


@dataclass(frozen=True)
class Finished:
    """A job that has ended, and everything the API server told of on the way."""

    job: Object
    watch: Watch
    pods: Watch
    clusters: Watch

    @property
    def status(self) -> Object:
        status: Object = self.job["status"]
        return status


@pytest.fixture(scope="module")
def finished(jobs_with_words: Kubectl) -> Iterator[Finished]:
    """The job, run once for all tests of this module."""
    jobs = jobs_with_words
    with (
        watching(jobs, "finetunejobs", fieldSelector=f"metadata.name={NAME}") as watch,
        watching(jobs, "pods") as pods,
        watching(jobs, "rayclusters") as clusters,
    ):
        jobs.apply(finetune_job(NAME, **WITH_WORDS, General__sample_prompts=1))

        def ended() -> Object | None:
            job = jobs.get("finetunejob", NAME)
            return job if job and job.get("status", {}).get("phase") in {"Succeeded", "Failed"} else None

        job = wait_until("the job to end", ended)
        wait_until("the watch to tell of it", lambda: watch.phases()[-1:] == [job["status"]["phase"]])
        yield Finished(job, watch, pods, clusters)
    jobs.run("delete", "finetunejob", NAME, "--ignore-not-found")


def test_phases_follow_each_other_to_succeeded(finished: Finished) -> None:
    assert finished.status["phase"] == "Succeeded", finished.status["message"]
    assert finished.watch.phases() == ["Pending", "Provisioning", "Running", "Succeeded"]


def test_progress_rises_while_running(finished: Finished) -> None:
    running = [status for status in finished.watch.statuses() if status.get("phase") == "Running"]
    percents = [status["progress"]["percent"] for status in running if "progress" in status]
    assert percents == sorted(percents)
    between = {percent for percent in percents if 0 < percent < 100}
    assert len(between) >= 2, percents
    assert finished.status["progress"]["display"] == "100%"
    assert finished.status["progress"]["step"] == finished.status["progress"]["totalSteps"] == 12


def test_ddp_ran_on_two_worker_pods(finished: Finished) -> None:
    progress = finished.status["progress"]
    assert progress["backend"] == "gloo"
    assert len(progress["hosts"]) == 2
    ready = {
        pod["metadata"]["name"]
        for pod in finished.pods.states
        if pod["metadata"]["labels"].get("ray.io/node-type") == "worker"
        and any(c["type"] == "Ready" and c["status"] == "True" for c in pod["status"].get("conditions", []))
    }
    assert set(progress["hosts"]) == ready


def test_loss_falls(finished: Finished) -> None:
    result = finished.status["result"]
    assert result["trainLoss"] < 0.7 * result["firstLoss"], result
    assert result["evalLoss"] < result["firstLoss"], result


def test_conditions_and_times_are_complete(finished: Finished) -> None:
    conditions = {condition["type"]: condition["status"] for condition in finished.status["conditions"]}
    assert conditions == {
        "Validated": "True", "ClusterReady": "False", "Submitted": "False", "Progressing": "False", "Complete": "True",
        "Finished": "True",
    }  # fmt: skip
    assert finished.status["startTime"] < finished.status["completionTime"]
    assert finished.status["observedGeneration"] == finished.job["metadata"]["generation"]


def test_kubectl_get_tells_all(jobs: Kubectl, finished: Finished) -> None:
    header, line = jobs.run("get", "finetunejobs", NAME).stdout.splitlines()
    assert header.split() == ["NAME", "PHASE", "PROGRESS", "LOSS", "WORKERS", "ATTEMPT", "AGE"]
    assert line.split()[:3] == [NAME, "Succeeded", "100%"]
    assert line.split()[4:6] == ["0/2", "1"], "its pods are gone"


def test_events_tell_of_each_phase(jobs: Kubectl, finished: Finished) -> None:
    uid = finished.job["metadata"]["uid"]
    events = [event for event in jobs.list("events") if event["involvedObject"].get("uid") == uid]
    # On a busy machine the Ray dashboard may be late with an answer, and the container runtime with a container.
    warnings = [f"{event['reason']}: {event['message']}" for event in events if event["type"] != "Normal"]
    assert not [text for text in warnings if not text.startswith("DashboardUnreachable") and "cannot be started" not in text]
    normal = sorted(event["reason"] for event in events if event["type"] == "Normal")
    assert normal == ["Accepted", "ClusterStarting", "Completed", "TrainingStarting"]


def test_output_is_complete_and_loads_on_the_base_model(jobs: Kubectl, release: Release, finished: Finished) -> None:
    output = finished.status["output"]
    claim = output["persistentVolumeClaim"]
    script = (cluster.ROOT / "tests" / "support" / "verify_output.py").read_text(encoding="utf-8")
    command = ["python", "-c", script, f"/output/{output['path']}", f"/models/{MODEL}"]
    pod = tool_pod("verify", release.trainer_image, command, {"/output": claim, "/models": "models"})
    seen = json.loads(cluster.run_to_end(jobs, pod).strip().splitlines()[-1])
    assert {"adapter_config.json", "adapter_model.safetensors", "report.html", "logs/samples.json"} <= set(seen["files"])
    assert seen["manifestSHA256"] == output["manifestSHA256"]
    assert seen["sizeBytes"] == output["sizeBytes"]
    assert seen["changed"] > 0.01


def test_one_cluster_was_made_and_is_gone(jobs: Kubectl, finished: Finished) -> None:
    uids = {state["metadata"]["uid"] for state in finished.clusters.states}
    assert len(uids) == 1
    wait_until("the RayCluster to be gone", lambda: not jobs.list("rayclusters"))
    label = f"llmonray.dev/finetunejob={NAME}"
    wait_until("its pods to be gone", lambda: not jobs.list("pods", label))


def test_deleting_the_job_leaves_the_claim(jobs: Kubectl, finished: Finished) -> None:
    claim = finished.status["output"]["persistentVolumeClaim"]
    uid = finished.job["metadata"]["uid"]
    jobs.run("delete", "finetunejob", NAME, "--timeout=240s")
    wait_until("owned objects to be collected", lambda: not _owned(jobs, uid))
    found = jobs.get("pvc", claim)
    assert found is not None
    assert found["status"]["phase"] == "Bound"
    assert "deletionTimestamp" not in found["metadata"]


def _owned(jobs: Kubectl, uid: str) -> list[Object]:
    objects = [*jobs.list("secrets"), *jobs.list("configmaps"), *jobs.list("rayclusters")]
    return [item for item in objects if any(ref["uid"] == uid for ref in item["metadata"].get("ownerReferences", []))]
