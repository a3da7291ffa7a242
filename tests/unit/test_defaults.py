"""What a job uses where its spec says nothing: as it was when the first attempt began."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel
from tests.support.builders import KEYS, SETTINGS, begun, make_job, raw_job

from finetune_operator.api.reading import read_job
from finetune_operator.api.v1alpha1 import FinetuneJob, FinetuneJobSpec, FinetuneJobStatus, ResolvedDefaults, dump
from finetune_operator.desired import defaults
from finetune_operator.desired.ray_cluster import build_ray_cluster

PART_OF_THE_API = {
    "datasetTokenSecretRefKey": "the name of the key in a Secret that users make by the documentation",
    "modelTokenSecretRefKey": "the name of the key in a Secret that users make by the documentation",
}
"""Defaults that no release changes, and why."""

OF_TODAY = defaults.resolved_defaults(make_job("gpu_i915"), SETTINGS)
OTHER = OF_TODAY.model_copy(update={
    "accelerator": "xe", "stall_timeout_seconds": 5,
    "retry_policy": OF_TODAY.retry_policy and OF_TODAY.retry_policy.model_copy(update={"max_attempts": 9, "backoff_seconds": 1}),
    "cluster_ttl_seconds": OF_TODAY.cluster_ttl_seconds and OF_TODAY.cluster_ttl_seconds.model_copy(update={"on_failure": 60}),
})  # fmt: skip
"""What another release has stored."""
OF_AN_OLDER_RELEASE = ("image", "headCpu", "headMemory", "workerMemory", "checkpointEverySteps", "checkpointKeep")


def flat(value: dict[str, Any], before: str = "") -> Iterator[str]:
    """Keys in one word: ``retryPolicyMaxAttempts``."""
    for key, inner in value.items():
        name = before + key[0].upper() + key[1:] if before else key
        yield from flat(inner, name) if isinstance(inner, dict) else [name]


def given_defaults(model: type[BaseModel]) -> dict[str, Any]:
    """Keys of a model, and of the models in it, whose absence means something else than nothing."""
    found: dict[str, Any] = {}
    for field in model.model_fields.values():
        inner = [part for part in (field.annotation, *get_args(field.annotation)) if isinstance(part, type)]
        inner = [part for part in inner if issubclass(part, BaseModel)]
        if inner:
            found[str(field.alias)] = given_defaults(inner[0])
        elif not field.is_required() and not any(field.default is nothing for nothing in (None, False, "", ())):
            found[str(field.alias)] = field.default
    return found


def job(name: str = "gpu_i915", stored: dict[str, Any] | None = None, **spec: Any) -> FinetuneJob:
    """A job as it is read from the API server."""
    status = dump(begun()) | ({"defaults": stored} if stored else {})
    found, problems = read_job(raw_job(name, spec=spec, status=status))
    assert problems is None
    assert isinstance(found, FinetuneJob)
    return found


def test_every_default_of_the_spec_is_stored_but_for_those_of_the_training() -> None:
    """The image is stored, and with it what the trainer does by default."""
    spec = given_defaults(FinetuneJobSpec)
    del spec["config"]
    left_open = set(flat(spec))
    assert {"retryPolicyMaxAttempts", "stallTimeoutSeconds", "clusterTTLSecondsOnFailure"} <= left_open
    assert left_open - set(flat(dump(OF_TODAY))) == set(PART_OF_THE_API)


def test_what_is_stored_holds_and_what_the_spec_says_wins_key_by_key() -> None:
    stored = job(stored=dump(OTHER), retryPolicy={"backoffSeconds": 30}, clusterTTLSeconds={"onSuccess": 10})
    policy, ttl = defaults.retry_policy(stored), defaults.cluster_ttl(stored)
    assert (policy.max_attempts, policy.backoff_seconds, policy.max_backoff_seconds) == (9, 30, 300)
    assert (ttl.on_success, ttl.on_failure) == (10, 60)
    assert defaults.stall_timeout_seconds(stored) == 5
    assert defaults.stall_timeout_seconds(job(stored=dump(OTHER), stallTimeoutSeconds=900)) == 900


def test_the_accelerator_of_a_job_that_names_none_is_kept() -> None:
    limits = build_ray_cluster(job(stored=dump(OTHER)), 2, SETTINGS, KEYS)["spec"]["workerGroupSpecs"][0]["template"]
    assert "gpu.intel.com/xe" in limits["spec"]["containers"][0]["resources"]["limits"]


@pytest.mark.parametrize("stored", [None, {key: dump(OTHER)[key] for key in OF_AN_OLDER_RELEASE}], ids=["nothing", "a part"])
def test_a_job_of_an_older_release_has_the_defaults_of_today_for_what_was_not_stored(stored: Any) -> None:
    older = job(stored=stored)
    assert (older.status.defaults is None) == (stored is None), "what it has stored is read"
    policy = defaults.retry_policy(older)
    assert (policy.max_attempts, policy.backoff_seconds, policy.max_backoff_seconds) == (3, 10, 300)
    assert (defaults.stall_timeout_seconds(older), defaults.cluster_ttl(older).on_failure) == (900, 0)
    assert defaults.pod_defaults(older, SETTINGS) == OF_TODAY


def test_what_is_stored_is_read_again() -> None:
    status = FinetuneJobStatus.model_validate(dump(begun(defaults=OTHER)))
    assert status.defaults == ResolvedDefaults.model_validate(dump(OTHER)) == OTHER
