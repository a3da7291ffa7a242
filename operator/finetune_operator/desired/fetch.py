"""The pod that fetches what a job names by addresses, before there is a Ray cluster."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import DATA_MOUNT, FETCH_LABEL, FETCH_PORT, MODEL_MOUNT, OUTPUT_MOUNT, S3
from finetune_operator.desired import naming
from finetune_operator.desired.ray_cluster import base_template, head_resources
from finetune_operator.desired.sources import What, sources
from finetune_operator.settings import Settings

TERMINATION_LOG = "/dev/termination-log"


def fetch_pod_name(job: FinetuneJob, attempt: int) -> str:
    """Name of the pod of a try."""
    return f"{job.metadata.name}-{naming.short_uid(job.metadata.uid)}-fetch-{attempt}"


def build_fetch_pod(job: FinetuneJob, attempt: int, settings: Settings) -> dict[str, Any]:
    """The pod that fetches. It has the head's place, resources and variables: where it runs, the head will run, too."""
    name = fetch_pod_name(job, attempt)
    template = base_template(job, settings, "fetch", head_resources(job, settings), job.spec.head)
    volumes, mounts = _volumes(job)
    spec, (container,) = template["spec"], template["spec"]["containers"]
    spec["volumes"] += volumes
    container["volumeMounts"] += mounts
    container["env"] += _tokens(job)
    container["ports"] = [{"name": "progress", "containerPort": FETCH_PORT}]
    # a program without a shell; Kubernetes itself would replace $(NAME) by a variable
    container["command"] = ["python", "-m", "finetune_trainer.fetch"]
    container["args"] = [word.replace("$", "$$") for word in fetch_arguments(job, _folders(job))]
    container["args"] += ["--report", TERMINATION_LOG, "--port", str(FETCH_PORT)]
    metadata = naming.metadata(job, name)
    labels = template["metadata"]["labels"] | metadata["labels"] | {FETCH_LABEL: str(attempt)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": template["metadata"] | metadata | {"labels": labels}, "spec": spec}


def fetch_arguments(job: FinetuneJob, folders: dict[What, str]) -> list[str]:
    """The command line of `finetune_trainer.fetch`, but for its report.

    Args:
        job: what is fetched.
        folders: where the versions of rows and model are kept.
    """
    arguments = ["--owner", job.metadata.uid]
    files = job.spec.config.dataset
    for source in sources(job):
        arguments += [f"--{source.what}={source.uri}", f"--{source.what}_dir={folders[source.what]}"]
        if source.what == "dataset":
            arguments += [f"--train_file={files.train_file}"]
            arguments += [f"--validation_file={files.validation_file}"] if files.validation_file else []
            digest = job.spec.dataset.sha256 if job.spec.dataset else None
            arguments += [f"--dataset_sha256={digest}"] if digest else []
    return arguments


_MOUNTS: dict[What, str] = {"dataset": DATA_MOUNT, "model": MODEL_MOUNT}


def _folders(job: FinetuneJob) -> dict[What, str]:
    return {source.what: f"{_MOUNTS[source.what] if source.claim else OUTPUT_MOUNT}/{source.folder}" for source in sources(job)}


def _volumes(job: FinetuneJob) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Whole claims: the kubelet makes the folder of a sub-path as one that the container's user may not write."""
    claims: dict[str, tuple[str, str]] = {}
    for source in sources(job):
        if source.claim is None:
            claims["output"] = naming.output_claim_name(job), OUTPUT_MOUNT
        else:
            claims["data" if source.what == "dataset" else "model"] = source.claim.claim_name, _MOUNTS[source.what]
    volumes = [{"name": name, "persistentVolumeClaim": {"claimName": claim}} for name, (claim, _) in claims.items()]
    return volumes, [{"name": name, "mountPath": path} for name, (_, path) in claims.items()]


_S3_VARIABLES = {
    "AWS_ACCESS_KEY_ID": False,
    "AWS_SECRET_ACCESS_KEY": False,
    "AWS_SESSION_TOKEN": True,
    "AWS_REGION": True,
    "AWS_ENDPOINT_URL": True,
}
"""Keys of a Secret for S3, and whether they may be missing."""


def _tokens(job: FinetuneJob) -> list[dict[str, Any]]:
    found = []
    for source in sources(job):
        if source.token is None:
            continue
        prefix, name = f"FINETUNE_{source.what.upper()}_", source.token.name
        if source.uri.startswith(S3):
            found += [_from_secret(prefix + key, name, key, optional=may_miss) for key, may_miss in _S3_VARIABLES.items()]
        else:
            found.append(_from_secret(f"{prefix}TOKEN", name, source.token.key))
    return found


def _from_secret(variable: str, secret: str, key: str, *, optional: bool = False) -> dict[str, Any]:
    reference = {"name": secret, "key": key} | ({"optional": True} if optional else {})
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}
