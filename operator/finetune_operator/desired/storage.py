"""The output claim, and the volumes of a job's pods."""

from __future__ import annotations

from typing import Any

from finetune_operator.api.spec import ClaimSource
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import CONFIG_MOUNT, DATA_MOUNT, HUB_CACHE_MOUNT, MODEL_MOUNT, OUTPUT_MOUNT, RESUME_MOUNT
from finetune_operator.desired import naming
from finetune_operator.desired.config_map import config_name
from finetune_operator.desired.sources import What, fetched, sources


def build_output_claim(job: FinetuneJob) -> dict[str, Any] | None:
    """The claim to make, or None when the job names an existing one.

    Without an owner reference unless the job asks for it: deleting a job must not delete a model.
    """
    output = job.spec.output
    if output.size is None:
        return None
    spec: dict[str, Any] = {
        "accessModes": list(output.access_modes or ("ReadWriteOnce",)),
        "resources": {"requests": {"storage": output.size}},
    }
    if output.storage_class_name:
        spec["storageClassName"] = output.storage_class_name
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": naming.metadata(job, naming.output_claim_name(job), owned=output.delete_with_job),
        "spec": spec,
    }


def required_claims(job: FinetuneJob) -> dict[str, str]:
    """Claims that must exist already: the key of the spec that names it → the claim."""
    dataset, model, output = job.spec.dataset, job.spec.model, job.spec.output
    claims = {}
    if output.persistent_volume_claim:
        claims["output.persistentVolumeClaim"] = output.persistent_volume_claim.claim_name
    if dataset and dataset.persistent_volume_claim:
        claims["dataset.persistentVolumeClaim"] = dataset.persistent_volume_claim.claim_name
    if model and model.persistent_volume_claim:
        claims["model.persistentVolumeClaim"] = model.persistent_volume_claim.claim_name
    if model and model.cache:
        claims["model.cache.persistentVolumeClaim"] = model.cache.persistent_volume_claim.claim_name
    if claim := resume_claim(job):
        claims["resumeFrom"] = claim
    return claims


def dataset_folder(job: FinetuneJob) -> ClaimSource | None:
    """The claim and the folder with the rows: the user's, or what was fetched."""
    return _fetched_folder(job, "dataset") or (job.spec.dataset.persistent_volume_claim if job.spec.dataset else None)


def model_folder(job: FinetuneJob) -> ClaimSource | None:
    """The claim and the folder with the base model: the user's, or what was fetched."""
    return _fetched_folder(job, "model") or (job.spec.model.persistent_volume_claim if job.spec.model else None)


def _fetched_folder(job: FinetuneJob, what: What) -> ClaimSource | None:
    source = next((source for source in sources(job) if source.what == what), None)
    found = fetched(job, what)
    if source is None or found is None:
        return None
    claim = source.claim.claim_name if source.claim else naming.output_claim_name(job)
    return ClaimSource(claim_name=claim, sub_path=f"{source.folder}/{found.version}")


def resume_claim(job: FinetuneJob) -> str | None:
    """The claim with the checkpoints that the job begins from, where it is not its output claim."""
    claim = job.status.resume.persistent_volume_claim if job.status.resume else None
    return None if claim == naming.output_claim_name(job) else claim


def resume_folder(job: FinetuneJob) -> str | None:
    """The folder of the earlier run, as the pods see it."""
    resume = job.status.resume
    if resume is None or resume.persistent_volume_claim is None or resume.path is None:
        return None
    return f"{RESUME_MOUNT if resume_claim(job) else OUTPUT_MOUNT}/{resume.path}"


def required_config_maps(job: FinetuneJob) -> dict[str, str]:
    """ConfigMaps that must exist already: the key of the spec that names it → the ConfigMap."""
    dataset = job.spec.dataset
    return {"dataset.configMap": dataset.config_map.name} if dataset and dataset.config_map else {}


def build_volumes(job: FinetuneJob) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes and mounts, the same in head and workers: the driver checks rows and the workers read them."""
    volumes: list[dict[str, Any]] = [
        {"name": "config", "configMap": {"name": config_name(job)}},
        {"name": "output", "persistentVolumeClaim": {"claimName": naming.output_claim_name(job)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "config", "mountPath": CONFIG_MOUNT, "readOnly": True},
        {"name": "output", "mountPath": OUTPUT_MOUNT},
    ]
    dataset, model = job.spec.dataset, job.spec.model
    sources = [
        ("data", DATA_MOUNT, dataset_folder(job), True),
        ("model", MODEL_MOUNT, model_folder(job), True),
        ("hub-cache", HUB_CACHE_MOUNT, model.cache.persistent_volume_claim if model and model.cache else None, False),
    ]
    if earlier := resume_claim(job):
        # without sub-path: the kubelet would make that folder where it is missing
        sources.append(("resume", RESUME_MOUNT, ClaimSource(claim_name=earlier), True))
    for name, path, claim, read_only in sources:
        if claim:
            # not readOnly on the claim: a second pod may mount the same claim for writing on the same node
            volumes.append({"name": name, "persistentVolumeClaim": {"claimName": claim.claim_name}})
            mount: dict[str, Any] = {"name": name, "mountPath": path} | ({"readOnly": True} if read_only else {})
            mounts.append(mount | ({"subPath": claim.sub_path} if claim.sub_path else {}))
    if dataset and dataset.config_map:
        volumes.append({"name": "data", "configMap": {"name": dataset.config_map.name}})
        mounts.append({"name": "data", "mountPath": DATA_MOUNT, "readOnly": True})
    return volumes, mounts
