"""``spec`` of a FinetuneJob.

A rule that the API server checks (CEL) stands beside the model that it is about, and in Python too: objects may be
older than the rules.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from finetune_operator.api.base import LabelKey, LabelMap, LabelValue, Model, Name, Quantity, Rules, SubPath
from finetune_trainer.config import TrainerConfig


class ClaimSource(Model):
    """A PersistentVolumeClaim of the job's namespace."""

    claim_name: Name
    """Name of the claim."""
    sub_path: SubPath = ""
    """Folder of the claim to mount; empty means its root."""


class LocalReference(Model):
    """An object of the job's namespace."""

    name: Name
    """Its name."""


class SecretKeyReference(Model):
    """A key of a Secret of the job's namespace."""

    name: Name
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "token"
    """Key in the Secret. Default: token."""


class DatasetSource(Model):
    """Where train_file and validation_file are found."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!(has(self.persistentVolumeClaim) && has(self.configMap))",
                    "message": "dataset takes a persistentVolumeClaim or a configMap, not both",
                }
            ]
        }
    )

    persistent_volume_claim: ClaimSource | None = None
    """A claim that holds the files; mounted read-only."""
    config_map: LocalReference | None = None
    """A ConfigMap whose keys are the files, for small data sets."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.persistent_volume_claim and self.config_map:
            raise ValueError("dataset takes a persistentVolumeClaim or a configMap, not both")
        return self


class ModelSource(Model):
    """Where the base model is found."""

    persistent_volume_claim: ClaimSource | None = None
    """A claim that holds the model's folder; mounted read-only. Default: base_model is loaded from the hub."""
    token_secret_ref: SecretKeyReference | None = None
    """A Secret with a hub token for gated models; becomes HF_TOKEN of the trainer."""


class OutputClaim(Model):
    """The claim that takes the result."""

    claim_name: Name
    """Name of the claim."""


class Output(Model):
    """Where the result goes: an existing claim, or one that the operator makes."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "has(self.persistentVolumeClaim) != has(self.size)",
                    "message": "output takes exactly one of persistentVolumeClaim (an existing claim) and size (a claim is made)",
                },
                {
                    "rule": "!has(self.persistentVolumeClaim) || (!has(self.storageClassName) && !has(self.accessModes))",
                    "message": "storageClassName and accessModes go with size, not with an existing claim",
                },
                {
                    "rule": "!has(self.deleteWithJob) || !self.deleteWithJob || has(self.size)",
                    "message": "deleteWithJob goes with size: a claim that the operator did not make is never deleted by it",
                },
            ]
        }
    )

    persistent_volume_claim: OutputClaim | None = None
    """An existing claim. Jobs may share one: each writes into a folder of its own."""
    size: Quantity | None = None
    """Size of the claim to make, as 10Gi."""
    storage_class_name: Name | None = None
    """Storage class of the claim to make. Default: the cluster's."""
    access_modes: (
        Annotated[tuple[Literal["ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod"], ...], Field(min_length=1, max_length=3)]
        | None
    ) = None
    """Access modes of the claim to make. Default: ReadWriteOnce, which holds all pods of a job on one node; take
    ReadWriteMany where pods are to spread over nodes."""
    delete_with_job: bool = False
    """Delete the claim that the operator made together with the job. Default: false, the model outlives the job."""

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.persistent_volume_claim is None) == (self.size is None):
            raise ValueError("output takes exactly one of persistentVolumeClaim (an existing claim) and size (a claim is made)")
        if self.persistent_volume_claim and (self.storage_class_name or self.access_modes):
            raise ValueError("storageClassName and accessModes go with size, not with an existing claim")
        if self.delete_with_job and self.size is None:
            raise ValueError("deleteWithJob goes with size: a claim that the operator did not make is never deleted by it")
        return self


class Toleration(Model):
    """A Kubernetes toleration."""

    key: Annotated[str, StringConstraints(max_length=317)] | None = None
    """Taint key; empty with operator Exists matches all."""
    operator: Literal["Exists", "Equal"] | None = None
    """Exists or Equal. Default: Equal."""
    value: LabelValue | None = None
    """Taint value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """Taint effect; empty matches all."""
    toleration_seconds: Annotated[int, Field(ge=0, le=2147483647)] | None = None
    """How long a NoExecute taint is tolerated, in seconds."""


class PodOptions(Model):
    """What the user may say about pods."""

    memory: Quantity | None = None
    """Memory request and limit of a pod, as 16Gi. Default: the operator's setting."""
    node_selector: LabelMap | None = None
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] | None = None
    """Taints that are tolerated."""
    image_pull_secrets: Annotated[tuple[LocalReference, ...], Field(max_length=8)] | None = None
    """Secrets with registry credentials."""
    labels: LabelMap | None = None
    """More labels for the pods."""
    annotations: Annotated[dict[LabelKey, Annotated[str, StringConstraints(max_length=1024)]], Field(max_length=32)] | None = None
    """More annotations for the pods."""


class HeadOptions(PodOptions):
    """The head pod: it runs the driver, and never trains."""

    cpu: Quantity | None = None
    """CPU request. Default: the operator's setting."""


class WorkerOptions(PodOptions):
    """The worker pods: num_training_workers of them. CPU and GPU come from resources_per_worker."""


Accelerator = Literal["i915", "xe", "nvidia"]

_OPTIONAL = ("image", "accelerator", "dataset", "model", "head", "workers")


def _immutable() -> Rules:
    """Rules at the parent: a rule on a property itself would miss adding and removing it."""
    rules = {name: f"self.{name} == oldSelf.{name}" for name in ("config", "output")}
    for name in _OPTIONAL:
        rules[name] = f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
    return [{"rule": rule, "message": f"spec.{name} is immutable; make a new FinetuneJob"} for name, rule in rules.items()]


_ACCELERATOR_RULE: Rules = [
    {
        "rule": "!has(self.accelerator) || (has(self.config.Training) && has(self.config.Training.device) && "
        "self.config.Training.device.lowerAscii() == 'gpu')",
        "message": "accelerator goes with config.Training.device GPU",
    }
]


class FinetuneJobSpec(Model):
    """What to finetune, on what, and where the result goes."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _immutable() + _ACCELERATOR_RULE})

    config: TrainerConfig
    """A finetuning YAML of llm-on-ray, verbatim: what `llm_on_ray-finetune --config_file` takes."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")] | None = (
        None
    )
    """Trainer image. Default: the operator's image for the device."""
    accelerator: Accelerator | None = None
    """GPU resource for device GPU: i915 (gpu.intel.com/i915, the default), xe (gpu.intel.com/xe) or nvidia (nvidia.com/gpu)."""
    dataset: DatasetSource | None = None
    """Where train_file is found. Default: a file in the image, or the name of a data set on the hub."""
    model: ModelSource | None = None
    """Where the base model is found. Default: the hub."""
    output: Output
    """Where the result goes."""
    head: HeadOptions | None = None
    """The head pod."""
    workers: WorkerOptions | None = None
    """The worker pods."""

    @model_validator(mode="after")
    def _accelerator_needs_gpu(self) -> Self:
        if self.accelerator and self.config.training.device != "gpu":
            raise ValueError("accelerator goes with config.Training.device GPU")
        return self
