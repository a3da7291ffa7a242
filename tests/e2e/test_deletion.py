"""Deleting a job, in whatever phase: its children go, its output stays, and its successor is another job."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support import cluster
from tests.support.cluster import change_spec, ended, job_status, step_of
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, wait_until, watching

LONG = {"Training__max_train_steps": 100_000, "Training__num_training_workers": 1, "output": {"size": "1Gi"}}
KINDS = "rayclusters,pods,secrets,configmaps"


def in_phase(jobs: Kubectl, name: str, phase: str) -> Any:
    return job_status(jobs, name).get("phase") == phase


def pending(jobs: Kubectl, name: str) -> None:
    wait_until("Pending", lambda: in_phase(jobs, name, "Pending"))


def provisioning(jobs: Kubectl, name: str) -> None:
    wait_until("a pod", lambda: jobs.list("pods", f"llmonray.dev/finetunejob={name}"))


def running(jobs: Kubectl, name: str) -> None:
    wait_until("a step", lambda: step_of(jobs, name))


def suspending(jobs: Kubectl, name: str) -> None:
    running(jobs, name)
    change_spec(jobs, name, suspend=True)
    wait_until("Suspending", lambda: job_status(jobs, name)["phase"].startswith("Suspend"))


def kept_after_its_end(jobs: Kubectl, name: str) -> None:
    running(jobs, name)
    change_spec(jobs, name, cancel=True)
    wait_until("Cancelled", lambda: ended(jobs, name))
    assert jobs.list("rayclusters", f"llmonray.dev/finetunejob={name}")


PHASES = [pending, provisioning, running, suspending, kept_after_its_end]


@pytest.mark.parametrize("reach", PHASES, ids=lambda reach: reach.__name__)
def test_nothing_is_left_of_a_deleted_job_but_its_output(jobs: Kubectl, reach: Any) -> None:
    name = f"gone-{reach.__name__.replace('_', '-')}"
    label = f"llmonray.dev/finetunejob={name}"
    spec = LONG | ({"dataset": {"configMap": {"name": "not-there"}}} if reach is pending else {})
    jobs.apply(finetune_job(name, **spec, clusterTTLSeconds={"onFailure": 600}))
    reach(jobs, name)
    jobs.run("delete", "finetunejob", name, "--timeout=240s")
    wait_until("its children to be gone", lambda: not jobs.list(KINDS, label))
    claims = jobs.list("persistentvolumeclaims", label)
    assert len(claims) == (0 if reach is pending else 1)
    jobs.run("delete", "pvc", "-l", label, "--wait=false")


def test_a_new_job_under_an_old_name_never_touches_what_the_old_one_had(jobs: Kubectl) -> None:
    job = finetune_job("again", **LONG)
    with watching(jobs, "rayclusters", labelSelector="llmonray.dev/finetunejob=again") as clusters:
        jobs.apply(job)
        provisioning(jobs, "again")
        old = jobs.get("finetunejob", "again")
        assert old is not None
        jobs.run("replace", "--force", "--grace-period=0", "-f", "-", stdin=json.dumps(job))
        try:
            running(jobs, "again")
            new = jobs.get("finetunejob", "again")
            assert new is not None
        finally:
            jobs.run("delete", "finetunejob", "again", "--timeout=240s")
    owners = {state["metadata"]["name"]: state["metadata"]["ownerReferences"][0]["uid"] for state in clusters.states}
    assert owners == {
        old["status"]["ray"]["cluster"]: old["metadata"]["uid"],
        new["status"]["ray"]["cluster"]: new["metadata"]["uid"],
    }
    jobs.run("delete", "pvc", "-l", "llmonray.dev/finetunejob=again", "--wait=false")


@pytest.fixture
def stopped_operator(kubectl: Kubectl, jobs: Kubectl) -> Iterator[None]:
    """The operator has no pod for the time of the test."""
    scale = ("-n", "finetune-system", "scale", "deployment/finetune-operator")
    kubectl.run(*scale, "--replicas=0", "--timeout=240s")
    kubectl.run(
        "-n", "finetune-system", "wait", "--for=delete", "--timeout=240s", "pod", "-l", "app.kubernetes.io/name=finetune-operator"
    )
    yield
    kubectl.run(*scale, "--replicas=1")
    kubectl.run("-n", "finetune-system", "rollout", "status", "deployment/finetune-operator", "--timeout=240s")


def begin(kubectl: Kubectl) -> Kubectl:
    namespace = cluster.new_namespace(kubectl, "finetune-gone")
    general = finetune_job("x")["spec"]["config"]["General"]
    job = finetune_job("left-alone", **LONG, dataset=None, model=None, General__base_model=general["base_model"])
    job["spec"] = {key: value for key, value in job["spec"].items() if value is not None}
    namespace.apply(job)
    provisioning(namespace, "left-alone")
    return namespace


@pytest.fixture
def orphaned(kubectl: Kubectl, jobs: Kubectl, request: pytest.FixtureRequest) -> Kubectl:
    """A namespace with a job and its cluster, whose operator is gone."""
    namespace = begin(kubectl)
    request.getfixturevalue("stopped_operator")
    return namespace


@pytest.mark.exclusive
def test_a_namespace_whose_operator_is_gone_can_be_deleted(orphaned: Kubectl) -> None:
    orphaned.run("delete", "namespace", orphaned.namespace, "--timeout=240s")
    assert orphaned.get("namespace", orphaned.namespace) is None
