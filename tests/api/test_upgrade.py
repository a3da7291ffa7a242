"""Jobs that were stored while the CRD was an older one are read, and written back, under the CRD of this checkout.

``tests/data/crds`` has, for each release, its CRD and jobs as its operator left them. A release adds two files.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.support import cluster
from tests.support.builders import DATA, load_yaml
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until

from finetune_operator.api.v1alpha1 import FinetuneJob, FinetuneJobStatus, Reason, dump
from finetune_operator.status import status_patch

CRDS = sorted((DATA / "crds").glob("????-??-??.yaml"))
CURRENT = cluster.ROOT / "crds" / "finetunejob.yaml"
MARK = "storedBeforeTheUpgrade"
"""A key that the older CRD is given for the time of the test: who accepts it is still, or already, the older one."""


def jobs_of(crd: Path) -> dict[str, Object]:
    """The jobs of a release by name, which says the release, too."""
    text = crd.with_suffix(".jobs.yaml").read_text(encoding="utf-8")
    jobs = [job for job in YAML(typ="safe", pure=True).load_all(text) if job]
    for job in jobs:
        job["metadata"]["name"] = f"of-{crd.stem}-{job['metadata']['name']}"
    return {job["metadata"]["name"]: job for job in jobs}


JOBS = {name: job for crd in CRDS for name, job in jobs_of(crd).items()}


def install(api: Kubectl, crd: Object) -> None:
    """Apply a CRD and wait until the API server validates by it."""
    spec = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]
    probe = finetune_job("probe", **{MARK: True})
    del probe["spec"]["config"]["General"]["sample_prompts"]  # younger than the first release
    api.run("apply", "--server-side", "--force-conflicts", "-f", "-", stdin=json.dumps(crd))
    marked = MARK in spec["properties"]
    wait_until("the CRD is in force", lambda: (api.apply(probe, check=False, dry_run=True).returncode == 0) == marked)


def marked(crd: Object) -> Object:
    result = copy.deepcopy(crd)
    schema = result["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    schema["properties"]["spec"]["properties"][MARK] = {"type": "boolean"}
    return result


def store(api: Kubectl, job: Object) -> Object:
    """Store a job and then its status, as a user and an operator do."""
    name = job["metadata"]["name"]
    api.run("create", "--validate=strict", "-f", "-", stdin=json.dumps({key: job[key] for key in job if key != "status"}))
    patch = json.dumps({"status": job["status"]})
    api.run("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", patch)
    return read(api, name)


def read(api: Kubectl, name: str) -> Object:
    found = api.get("finetunejob", name)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def upgraded(api: Kubectl) -> Iterator[dict[str, Object]]:
    """Every job as it was read back by the CRD under which it was stored; by now the CRD of this checkout is in force."""
    stored = {}
    try:
        for crd in CRDS:
            install(api, marked(load_yaml(crd)))
            stored |= {name: store(api, job) for name, job in jobs_of(crd).items()}
    finally:
        install(api, load_yaml(CURRENT))
    yield stored
    api.run("delete", "finetunejob", *stored)


def test_there_is_an_older_release() -> None:
    assert CRDS
    assert {job["status"]["phase"] for job in JOBS.values()} >= {"Pending", "Provisioning", "Running", "Succeeded", "Failed"}


@pytest.mark.parametrize("name", JOBS)
def test_nothing_of_an_older_job_is_lost(api: Kubectl, upgraded: dict[str, Object], name: str) -> None:
    found = read(api, name)
    assert found["spec"] == upgraded[name]["spec"] == JOBS[name]["spec"]
    assert found["status"] == upgraded[name]["status"] == JOBS[name]["status"]


@pytest.mark.parametrize("name", JOBS)
def test_an_older_job_is_read_by_the_models(api: Kubectl, upgraded: dict[str, Object], name: str) -> None:
    job = FinetuneJob.model_validate(read(api, name))
    assert dump(job.status).items() >= JOBS[name]["status"].items()
    assert job.metadata.uid == upgraded[name]["metadata"]["uid"]


@pytest.mark.parametrize("name", JOBS)
def test_an_older_job_may_be_written_back_and_told_of(api: Kubectl, upgraded: dict[str, Object], name: str) -> None:
    """By a user who changes an annotation, and by the operator, which ends it."""
    found = read(api, name)
    found["metadata"].setdefault("annotations", {})["example.com/seen"] = "yes"
    api.run("replace", "-f", "-", stdin=json.dumps(found))
    assert read(api, name)["spec"] == upgraded[name]["spec"]
    before = FinetuneJobStatus.model_validate(found["status"])
    after = before.model_copy(update={"reason": str(Reason.HEAD_LOST), "message": "the head pod was lost"})
    patch: Any = {"status": status_patch(dump(before), after)}
    api.run("patch", "finetunejob", name, "--subresource=status", "--type=merge", "-p", json.dumps(patch))
    assert FinetuneJobStatus.model_validate(read(api, name)["status"]) == after
