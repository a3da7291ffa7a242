"""The pod that fetches what a job names by addresses, before there is a Ray cluster."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import DATA_MOUNT, FETCH_LABEL, FETCH_PORT, MODEL_MOUNT, OUTPUT_MOUNT
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


def _tokens(job: FinetuneJob) -> list[dict[str, Any]]:
    return [
        {
            "name": f"FINETUNE_{source.what.upper()}_TOKEN",
            "valueFrom": {"secretKeyRef": {"name": source.token.name, "key": source.token.key}},
        }
        for source in sources(job)
        if source.token
    ]
