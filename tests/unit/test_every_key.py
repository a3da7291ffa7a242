"""Every key of the spec, but for the YAML in ``config``, does something: in the manifests, or in a decision."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from tests.support.builders import DATA, KEYS, SETTINGS, raw_job
from tests.unit import test_attempts, test_ending, test_resume_from

from finetune_operator.api.schema import crd_schema
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired.fetch import build_fetch_pod
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.sources import sources
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_submission

pytestmark = pytest.mark.sampled(4)

Schema = dict[str, Any]
Path = tuple[str | int, ...]

SPEC = crd_schema()["properties"]["spec"]
JOBS = {path.stem: raw_job(path.stem) for path in (DATA / "jobs").glob("*.yaml")}

IN_DECISIONS = {
    "cancel": test_ending.test_a_job_is_cancelled_in_every_phase_and_its_cluster_deleted_afterwards,
    "suspend": test_attempts.test_a_suspended_run_is_asked_for_a_checkpoint_before_its_cluster_goes,
    "resumeFrom": test_resume_from.test_the_place_is_stored_with_the_first_attempt_before_anything_is_made,
    "retryPolicy.maxAttempts": test_attempts.test_the_pause_doubles_up_to_its_limit_and_attempts_end,
    "retryPolicy.backoffSeconds": test_attempts.test_the_pause_doubles_up_to_its_limit_and_attempts_end,
    "retryPolicy.maxBackoffSeconds": test_attempts.test_the_pause_doubles_up_to_its_limit_and_attempts_end,
    "provisioningTimeoutSeconds": test_ending.test_a_job_that_does_not_start_in_time_says_what_it_waited_for,
    "activeDeadlineSeconds": test_ending.test_the_deadline_of_a_run_is_met_to_the_second,
    "stallTimeoutSeconds": test_ending.test_the_stall_timeout_is_the_jobs_own_and_ends_nothing,
    "clusterTTLSeconds.onSuccess": test_ending.test_the_cluster_is_kept_as_long_as_was_said,
    "clusterTTLSeconds.onFailure": test_ending.test_the_cluster_is_kept_as_long_as_was_said,
    "ttlSecondsAfterFinished": test_ending.test_the_job_itself_goes_when_its_time_is_over_and_is_asked_for_until_it_is_gone,
}
"""Keys that no manifest holds → the test that shows what they do."""


def leaves(schema: Schema, name: str = "") -> Iterator[str]:
    """Keys below which there is nothing but values: ``head.tolerations[].key``."""
    if "items" in schema:
        yield from leaves(schema["items"], f"{name}[]")
    elif "properties" in schema:
        for key, inner in schema["properties"].items():
            if (name, key) != ("", "config"):
                yield from leaves(inner, f"{name}.{key}".removeprefix("."))
    else:
        yield name


def values(schema: Schema, value: Any, path: Path = ()) -> Iterator[tuple[Path, Schema, Any]]:
    """The values of the leaves that are set."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from values(schema["items"], item, (*path, index))
    elif "properties" in schema:
        for key, item in value.items():
            yield from values(schema["properties"][key], item, (*path, key))
    else:
        yield path, schema, value


def leaf(path: Path) -> str:
    return "".join("[]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def others(schema: Schema, value: Any) -> list[Any]:
    """Values that are like this one; not all of them may be allowed."""
    match value:
        case bool():
            return [not value]
        case int():
            return [value + 1, value - 1]
        case dict():
            return [{key: f"{item}x" for key, item in value.items()}]
    if schema.get("pattern") == "^[0-9a-f]{64}$":
        return [value[::-1]]
    return [other for other in schema["enum"] if other != value] if "enum" in schema else [f"{value}x", "7Gi"]


def changed(raw: Schema, path: Path, value: Any) -> FinetuneJob | None:
    """The job with another value, or None when it is not allowed."""
    raw = copy.deepcopy(raw)
    target = raw["spec"]
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    try:
        return FinetuneJob.model_validate(raw)
    except ValidationError:
        return None


def build(job: FinetuneJob) -> list[Any]:
    fetch = build_fetch_pod(job, 1, SETTINGS) if sources(job) else None
    return [build_ray_cluster(job, 1, SETTINGS, KEYS), build_submission(job, 1), build_output_claim(job), fetch]


def effects(name: str) -> list[bool]:
    """Whether the manifests differ, for each allowed change of this key in a job of tests/data/jobs."""
    found = []
    for raw in JOBS.values():
        before = build(FinetuneJob.model_validate(raw))
        for path, schema, value in values(SPEC, raw["spec"]):
            if leaf(path) == name:
                jobs = [changed(raw, path, other) for other in others(schema, value)]
                found += [build(job) != before for job in jobs if job is not None]
    return found


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", [name for name in leaves(SPEC) if name not in IN_DECISIONS], ids=str)
def test_a_key_takes_effect_in_the_manifests(name: str) -> None:
    found = effects(name)
    assert found, f"no job of tests/data/jobs sets {name}"
    assert all(found)


@pytest.mark.parametrize("name", IN_DECISIONS)
def test_a_key_that_decides_changes_no_manifest(name: str) -> None:
    assert name in leaves(SPEC)
    found = effects(name)
    assert found, f"no job of tests/data/jobs sets {name}"
    assert not any(found)
