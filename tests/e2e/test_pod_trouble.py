"""What goes wrong with pods and volumes reaches the job, names the object, and is then not repeated."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.conftest import Release
from tests.support import cluster
from tests.support.cluster import applied, ended, job_status
from tests.support.jobs import WITH_WORDS, claim, finetune_job, tool_pod
from tests.support.kubectl import Kubectl, Object, after, wait_until, watching

ONE_WORKER = {"Training__num_training_workers": 1}


def says(jobs: Kubectl, name: str, reason: str, *words: str) -> Callable[[], Object | None]:
    """A check whether a job gives a reason, with these words in its message."""

    def check() -> Object | None:
        status = job_status(jobs, name)
        found = status.get("reason") == reason and all(word in status["message"] for word in words)
        return status if found else None

    return check


NODE = {"memory": "3Gi", "cpu": "200m", "nodeSelector": {"nowhere": "here"}}
WAITING = {
    "image": ({"image": "localhost/nobody-built-this:1"}, "ImagePullFailed", "localhost/nobody-built-this:1"),
    "node": ({"head": NODE}, "Unschedulable", "didn't match Pod's node affinity/selector"),
    "claim": ({"output": {"size": "1Gi", "storageClassName": "nowhere"}}, "ClaimNotBound", "PersistentVolumeClaim"),
}


def test_jobs_whose_pods_cannot_start_say_why_and_keep_quiet_after_that(jobs: Kubectl) -> None:
    with contextlib.ExitStack() as stack:
        for what, (changes, _, _) in WAITING.items():
            stack.enter_context(applied(jobs, finetune_job(f"no-{what}", **ONE_WORKER, **changes)))
        for what, (_, reason, words) in WAITING.items():
            told = says(jobs, f"no-{what}", reason, words)
            status = wait_until(reason, told)
            assert status["phase"] == "Provisioning"
            wait_until(f"an event {reason}", partial(warned, jobs, f"no-{what}", reason))
        names = [f"no-{what}" for what in WAITING]
        wait_until("all that is new to be told", unchanged(jobs, names, 15))
        watches = {
            what: stack.enter_context(watching(jobs, "finetunejobs", fieldSelector=f"metadata.name=no-{what}"))
            for what in WAITING
        }
        wait_until("half a minute of quiet", after(30))
    writes = {what: {state["metadata"]["resourceVersion"] for state in watch.states} for what, watch in watches.items()}
    assert all(1 <= len(versions) <= 2 for versions in writes.values()), f"at most one write in half a minute: {writes}"


def unchanged(jobs: Kubectl, names: list[str], seconds: float) -> Callable[[], bool]:
    """A check whether none of these jobs was written for so long."""
    seen: list[Object] = [{}]
    rest = [after(seconds)]

    def check() -> bool:
        versions = {name: (jobs.get("finetunejob", name) or {})["metadata"]["resourceVersion"] for name in names}
        if versions != seen[0]:
            seen[0], rest[0] = versions, after(seconds)
        return rest[0]()

    return check


def warned(jobs: Kubectl, name: str, reason: str) -> bool:
    events = jobs.list("events")
    return any(
        (event["involvedObject"]["kind"], event["involvedObject"]["name"], event["reason"], event["type"])
        == ("FinetuneJob", name, reason, "Warning")
        for event in events
    )


def test_pods_that_exceed_a_quota_are_told_and_come_when_there_is_room(jobs: Kubectl) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": {"limits.memory": "4Gi"}},
    }
    jobs.apply(quota)
    try:
        with applied(jobs, finetune_job("over-quota", **ONE_WORKER)):
            wait_until("QuotaExceeded", says(jobs, "over-quota", "QuotaExceeded", "exceeded quota: small", "limits.memory"))
            jobs.run("delete", "resourcequota", "small")
            wait_until("training", lambda: job_status(jobs, "over-quota").get("phase") == "Running")
    finally:
        jobs.run("delete", "resourcequota", "small", "--ignore-not-found")


def test_a_worker_with_too_little_memory_is_named_with_its_limit(jobs_with_words: Kubectl) -> None:
    jobs = jobs_with_words
    job = finetune_job("little-memory", **WITH_WORDS | {"workers": {"memory": "1Gi"}}, Training__max_train_steps=100)
    with applied(jobs, job):
        status = wait_until("the end", lambda: ended(jobs, "little-memory"))
        assert (status["phase"], status["reason"]) == ("Failed", "WorkerOOMKilled"), status["message"]
        assert "-workers-worker-" in status["message"], status["message"]
        assert "/ 1.00GB limit" in status["message"], status["message"]


@pytest.fixture
def small_volume(jobs: Kubectl) -> Iterator[str]:
    """A claim with room for two checkpoints and no third."""
    if cluster.harness("mode")[0] != "source":
        pytest.skip("a volume of a few megabytes is a mount on the node: with the cluster of these scripts only")
    folder = cluster.run_folder() / "small-volume"  # below it, a killed test leaves no mount for longer than the cluster
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m,mode=1777", "finetune-small", folder], check=True)
    try:
        jobs.apply(volume("small", folder), claim("small") | {"spec": claim("small")["spec"] | {"storageClassName": "small"}})
        yield "small"
    finally:
        jobs.run("delete", "pvc", "small", "--ignore-not-found", "--timeout=240s")
        jobs.run("delete", "pv", "small", "--ignore-not-found", "--timeout=240s")
        subprocess.run(["umount", "--lazy", folder], check=True)


def volume(name: str, folder: Path) -> Object:
    node = {"key": "kubernetes.io/hostname", "operator": "Exists"}
    spec: dict[str, Any] = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "storageClassName": name,
        "local": {"path": str(folder)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def test_a_full_output_volume_is_told_and_the_last_checkpoint_is_whole(
    jobs_with_words: Kubectl, release: Release, small_volume: str
) -> None:
    jobs = jobs_with_words
    job = finetune_job(
        "full-volume",
        **WITH_WORDS,
        output={"persistentVolumeClaim": {"claimName": small_volume}},
        checkpoint={"everySteps": 2, "keep": 2},
        **ONE_WORKER,
    )
    with applied(jobs, job):
        status = wait_until("the end", lambda: ended(jobs, "full-volume"))
        assert (status["phase"], status["reason"]) == ("Failed", "OutputVolumeFull"), status["message"]
        assert status["checkpoint"]["step"] == 4
        folder = f"/output/{status['output']['path']}/checkpoints/step-00000004"
        check = (
            "import hashlib, json, pathlib, sys; folder = pathlib.Path(sys.argv[1]);"
            "files = json.loads((folder / 'complete.json').read_text())['files'];"
            "print(all(hashlib.sha256((folder / f['path']).read_bytes()).hexdigest() == f['sha256'] for f in files), len(files))"
        )
        pod = tool_pod("look", release.trainer_image, ["python", "-c", check, folder], {"/output": small_volume})
        assert cluster.run_to_end(jobs, pod).split() == ["True", "2"]
