"""What a job uses where its spec says nothing: what is stored with its first attempt, whatever operator runs now.

A status of an older release lacks some of it, or all: there, what holds now is used. What the user sets later always wins.
"""

from __future__ import annotations

from typing import TypeVar

from finetune_operator.api.spec import STALL_TIMEOUT_SECONDS, Accelerator, CheckpointPolicy, ClusterTTL, RetryPolicy
from finetune_operator.api.v1alpha1 import FinetuneJob, ResolvedDefaults
from finetune_operator.settings import Settings

DEFAULT_ACCELERATOR: Accelerator = "i915"

_Part = TypeVar("_Part", RetryPolicy, ClusterTTL)


def resolved_defaults(job: FinetuneJob, settings: Settings) -> ResolvedDefaults:
    """What the spec leaves open, by the settings and the release of today. What may be changed while the job lives is stored
    without what the spec says of it now.
    """
    policy = job.spec.checkpoint or CheckpointPolicy()
    device = job.spec.config.training.device
    return ResolvedDefaults(
        image=job.spec.image or settings.image_for(device),
        image_pull_policy=settings.image_pull_policy,
        head_cpu=settings.head_cpu,
        head_memory=settings.head_memory,
        worker_memory=settings.worker_memory,
        accelerator=(job.spec.accelerator or DEFAULT_ACCELERATOR) if device == "gpu" else None,
        checkpoint_every_steps=policy.every_steps,
        checkpoint_keep=policy.keep,
        retry_policy=RetryPolicy(),
        stall_timeout_seconds=STALL_TIMEOUT_SECONDS,
        cluster_ttl_seconds=ClusterTTL(),
    )


def pod_defaults(job: FinetuneJob, settings: Settings) -> ResolvedDefaults:
    """The same as it was when the first attempt began."""
    now, stored = resolved_defaults(job, settings), job.status.defaults
    return now if stored is None else now.model_copy(update={name: value for name, value in stored if value is not None})


def accelerator(job: FinetuneJob) -> Accelerator:
    """Which GPU resource a job on GPUs asks for."""
    stored = job.status.defaults
    return (stored and stored.accelerator) or job.spec.accelerator or DEFAULT_ACCELERATOR


def retry_policy(job: FinetuneJob) -> RetryPolicy:
    """How often a lost run is taken up again."""
    stored = job.status.defaults
    return _filled(job.spec.retry_policy, (stored and stored.retry_policy) or RetryPolicy())


def cluster_ttl(job: FinetuneJob) -> ClusterTTL:
    """How long the cluster of a job that has ended is kept."""
    stored = job.status.defaults
    return _filled(job.spec.cluster_ttl_seconds, (stored and stored.cluster_ttl_seconds) or ClusterTTL())


def stall_timeout_seconds(job: FinetuneJob) -> int:
    """Time without a new step after which a job is shown as stalled."""
    given, stored = job.spec.stall_timeout_seconds, job.status.defaults
    if "stall_timeout_seconds" in job.spec.model_fields_set:
        return given
    return (stored and stored.stall_timeout_seconds) or given


def _filled(given: _Part | None, defaults: _Part) -> _Part:
    """A part of the spec, with defaults for the keys that it does not set."""
    return defaults.model_copy(update=given.model_dump(exclude_unset=True)) if given else defaults
