"""Names, labels and owner references: functions of the job, so that each reconcile finds the objects of earlier ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob, JobIdentity
from finetune_operator.constants import (
    API_VERSION,
    ATTEMPT_LABEL,
    FIELD_MANAGER,
    JOB_LABEL,
    KIND,
    MANAGED_BY_LABEL,
    SCHEDULING_LABELS,
    UID_LABEL,
)


def short_uid(uid: str) -> str:
    """The first five hexadecimal digits of a UID."""
    return uid.replace("-", "")[:5]


def cluster_name(job: JobIdentity, attempt: int) -> str:
    """Name of the RayCluster of an attempt: at most 53 characters, since the API server holds jobs' names to 40."""
    return f"{job.metadata.name}-{short_uid(job.metadata.uid)}-{attempt}"


def submission_id(job: JobIdentity, attempt: int) -> str:
    """Ray submission id of an attempt: the same after a restart, so that a second POST is refused by Ray."""
    return f"{job.metadata.uid}-a{attempt}"


def config_name(job: FinetuneJob) -> str:
    """Name of the ConfigMap with the finetuning YAML."""
    return f"{job.metadata.name}-{job.metadata.uid}"


def secret_name(job: FinetuneJob, key_id: str) -> str:
    """Name of the Secret with the Ray token.

    The operator may create Secrets but not read them, so the name holds all that the content depends on: the UID and
    the master key's id. A Secret of that name can be no other.
    """
    return f"{job.metadata.name}-{job.metadata.uid}-{key_id}"


def output_claim_name(job: FinetuneJob) -> str:
    """The claim that takes the result: the user's, or the one that the operator makes."""
    claim = job.spec.output.persistent_volume_claim
    return claim.claim_name if claim else f"{job.metadata.name}-{short_uid(job.metadata.uid)}-output"


def output_path(job: FinetuneJob) -> str:
    """The job's folder on its output claim: decided here, not discovered."""
    return f"{job.metadata.name}-{job.metadata.uid}"


def dashboard_service(cluster: str) -> str:
    """KubeRay's name for the head's service."""
    return f"{cluster}-head-svc"


def labels(job: JobIdentity, attempt: int | None = None) -> dict[str, str]:
    """Labels of every object made for a job."""
    result = {JOB_LABEL: job.metadata.name, UID_LABEL: job.metadata.uid, MANAGED_BY_LABEL: FIELD_MANAGER}
    return result if attempt is None else result | {ATTEMPT_LABEL: str(attempt)}


def scheduling_labels(labels: Mapping[str, str]) -> dict[str, str]:
    """Those of a job's labels by which a queue or a batch scheduler takes it; empty: it shares nodes with others."""
    return {name: value for name, value in labels.items() if name in SCHEDULING_LABELS}


def owner_reference(job: FinetuneJob) -> dict[str, Any]:
    """Makes an object go with its job. It never blocks the job's deletion."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "name": job.metadata.name,
        "uid": job.metadata.uid,
        "controller": True,
        "blockOwnerDeletion": False,
    }


def metadata(job: FinetuneJob, name: str, *, attempt: int | None = None, owned: bool = True) -> dict[str, Any]:
    """Metadata of an object made for a job."""
    result: dict[str, Any] = {"name": name, "namespace": job.metadata.namespace, "labels": labels(job, attempt)}
    return result | {"ownerReferences": [owner_reference(job)]} if owned else result
