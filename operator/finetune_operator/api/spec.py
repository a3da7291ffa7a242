"""``spec`` of a FinetuneJob.

A rule that the API server checks (CEL) stands beside the model that it is about, and in Python too: objects may be
older than the rules.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from finetune_operator.api.base import LocalReference, Model, Name, Quantity, Rules, SubPath
from finetune_operator.api.pods import HeadOptions, WorkerOptions
from finetune_operator.constants import MAX_JOB_NAME, TOKEN_SECRET_KEY
from finetune_trainer.config.schema import TrainerConfig


class ClaimSource(Model):
    """A PersistentVolumeClaim of the job's namespace."""

    claim_name: Name
    """Name of the claim."""
    sub_path: SubPath = ""
    """Folder of the claim to mount; empty means its root."""


class SecretKeyReference(Model):
    """A key of a Secret of the job's namespace."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": f"!has(self.key) || self.key != '{TOKEN_SECRET_KEY}'",
                    "message": f"the key {TOKEN_SECRET_KEY} is that of a Ray cluster's token, which is not for the hub",
                }
            ]
        }
    )

    name: Name
    """Name of the Secret."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253)] = "token"
    """Key in the Secret. Default: token."""


_REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*"
_REVISION = r"(@[A-Za-z0-9][A-Za-z0-9._/-]*)?"
_BUCKET = r"[a-z0-9][a-z0-9.-]*[a-z0-9]"
_DATASET_URI = rf"^(hf://(datasets/)?{_REPOSITORY}{_REVISION}|s3://{_BUCKET}/[^\s?#]+|https?://[^\s/@?#]+/[^\s#]+)$"
_MODEL_URI = rf"^(hf://(models/)?{_REPOSITORY}{_REVISION}|s3://{_BUCKET}/([^\s?#]+/)?)$"

_SHA256_FILE = "sha256 goes with the uri of one file: https://, http://, or s3:// without a slash at the end"
_PLAIN_HTTP = "an http:// uri needs sha256: nothing else tells that the file is the one that was meant"
_ONE_SOURCE = "dataset takes a persistentVolumeClaim or a configMap, not both"
_NO_CONFIG_MAP = "dataset takes a uri or a configMap, not both"
_BEARER_FOR = "dataset.tokenSecretRef goes with a uri of hf://, s3:// or https://"

_DATASET_RULES: Rules = [
    {"rule": "!(has(self.persistentVolumeClaim) && has(self.configMap))", "message": _ONE_SOURCE},
    {"rule": "!(has(self.uri) && has(self.configMap))", "message": _NO_CONFIG_MAP},
    {
        "rule": "!has(self.sha256) || (has(self.uri) && !self.uri.startsWith('hf://') && !self.uri.endsWith('/'))",
        "message": _SHA256_FILE,
    },
    {"rule": "!has(self.uri) || !self.uri.startsWith('http://') || has(self.sha256)", "message": _PLAIN_HTTP},
    {
        "rule": "!has(self.tokenSecretRef) || (has(self.uri) && !self.uri.startsWith('http://'))",
        "message": _BEARER_FOR,
    },
]


class DatasetSource(Model):
    """Where train_file and validation_file are found."""

    model_config = ConfigDict(json_schema_extra={"x-kubernetes-validations": _DATASET_RULES})

    uri: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=_DATASET_URI)] | None = None
    """An address from which the rows are fetched once, before any GPU is asked for: hf://owner/name or
    hf://owner/name@revision, s3://bucket/key, s3://bucket/folder/, https://host/file. What is one file becomes train_file."""
    sha256: Annotated[str, StringConstraints(min_length=64, max_length=64, pattern="^[0-9a-f]{64}$")] | None = None
    """SHA-256 of the one file of the uri, in hexadecimal digits; another file is refused."""
    persistent_volume_claim: ClaimSource | None = None
    """A claim that holds the files; mounted read-only. With a uri: the claim on which they are kept, for this job and others;
    default: the output claim."""
    config_map: LocalReference | None = None
    """A ConfigMap whose keys are the files, for small data sets."""
    token_secret_ref: SecretKeyReference | None = None
    """A Secret with a token for the uri: of the hub, or a bearer token for https://. For s3:// its keys are AWS_ACCESS_KEY_ID and
    AWS_SECRET_ACCESS_KEY, and where they are needed AWS_SESSION_TOKEN, AWS_REGION and AWS_ENDPOINT_URL."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.config_map and self.persistent_volume_claim:
            raise ValueError(_ONE_SOURCE)
        if self.config_map and self.uri:
            raise ValueError(_NO_CONFIG_MAP)
        return self

    @model_validator(mode="after")
    def _address(self) -> Self:
        uri = self.uri or ""
        if self.sha256 and (not uri or uri.startswith("hf://") or uri.endswith("/")):
            raise ValueError(_SHA256_FILE)
        if uri.startswith("http://") and not self.sha256:
            raise ValueError(_PLAIN_HTTP)
        if self.token_secret_ref and not uri.startswith(("hf://", "s3://", "https://")):
            raise ValueError(_BEARER_FOR)
        return self


_HUB_ONLY = "model.revision and model.cache go with a model from the hub, not with model.persistentVolumeClaim"
_REVISION_IN_URI = "model.revision and model.cache do not go with model.uri: a revision is part of it, hf://owner/name@revision"


class CacheSource(Model):
    """Where downloads from the hub are kept."""

    persistent_volume_claim: ClaimSource
    """A claim that head and workers mount for writing; one that several nodes may mount where pods spread over nodes."""


class ModelSource(Model):
    """Where the base model is found."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {
                    "rule": "!has(self.persistentVolumeClaim) || (!has(self.revision) && !has(self.cache))",
                    "message": _HUB_ONLY,
                },
                {"rule": "!has(self.uri) || (!has(self.revision) && !has(self.cache))", "message": _REVISION_IN_URI},
            ]
        }
    )

    uri: Annotated[str, StringConstraints(min_length=1, max_length=1024, pattern=_MODEL_URI)] | None = None
    """An address from which the model is fetched once, before any GPU is asked for: hf://owner/name or
    hf://owner/name@revision, s3://bucket/folder/."""
    persistent_volume_claim: ClaimSource | None = None
    """A claim that holds the model's folder; mounted read-only. With a uri: the claim on which it is kept, for this job and
    others; default: the output claim. Without both, base_model is loaded from the hub."""
    revision: (
        Annotated[str, StringConstraints(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]*$")] | None
    ) = None  # fmt: skip
    """Commit, tag or branch of the model on the hub; a commit is the only one that never moves. Default: main."""
    cache: CacheSource | None = None
    """Where the hub's files are kept for the next job. Default: they go with the pods."""
    token_secret_ref: SecretKeyReference | None = None
    """A Secret with a hub token for gated models; becomes HF_TOKEN of the trainer. For a uri of s3:// as that of dataset."""

    @model_validator(mode="after")
    def _hub_only(self) -> Self:
        if self.persistent_volume_claim and (self.revision or self.cache):
            raise ValueError(_HUB_ONLY)
        if self.uri and (self.revision or self.cache):
            raise ValueError(_REVISION_IN_URI)
        return self


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


Accelerator = Literal["i915", "xe", "nvidia"]

Seconds = Annotated[int, Field(ge=1, le=31536000)]
"""A time-out: one second to one year."""
TimeToLive = Annotated[int, Field(ge=0, le=31536000)]

STALL_TIMEOUT_SECONDS = 900
"""Far more than a step, an evaluation or the start of a large model takes."""


class ClusterTTL(Model):
    """How long a finished job's Ray cluster is kept, to look at it."""

    on_success: TimeToLive = 0
    """Seconds after Succeeded."""
    on_failure: TimeToLive = 0
    """Seconds after Failed or Cancelled. The pods keep their CPUs, GPUs and memory meanwhile."""


class RetryPolicy(Model):
    """How often a job whose run was lost is taken up again, from its newest checkpoint. What a retry cannot mend, such as
    a broken row, is not tried again.
    """

    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Attempts in all. Suspensions do not count."""
    backoff_seconds: Annotated[int, Field(ge=0, le=86400)] = 10
    """Pause before the second attempt, in seconds; it doubles with each further one."""
    max_backoff_seconds: Annotated[int, Field(ge=0, le=86400)] = 300
    """Longest pause, in seconds."""


class CheckpointPolicy(Model):
    """When checkpoints are written, below the job's folder on the output claim."""

    every_steps: Annotated[int, Field(ge=0, le=1000000000)] = 100
    """Optimizer steps between two checkpoints; 0: none but that of a suspension."""
    keep: Annotated[int, Field(ge=1, le=100)] = 2
    """How many are kept while the job runs."""


_OPTIONAL = ("image", "accelerator", "dataset", "model", "checkpoint", "resumeFrom")


def _immutable() -> Rules:
    """Rules at the parent: a rule on a property itself would miss adding and removing it."""
    rules = {name: f"self.{name} == oldSelf.{name}" for name in ("config", "output")}
    rules |= {name: _unchanged(name) for name in _OPTIONAL}
    return [{"rule": rule, "message": f"spec.{name} is immutable; make a new FinetuneJob"} for name, rule in rules.items()]


def _unchanged(path: str) -> str:
    """The CEL condition that an optional part is neither added nor removed nor changed."""
    return f"has(self.{path}) == has(oldSelf.{path}) && (!has(self.{path}) || self.{path} == oldSelf.{path})"


def _unless_suspended() -> Rules:
    """Rules at the root, where the status is in sight: without a cluster, the next one may be another."""
    suspended = "(has(oldSelf.status) && has(oldSelf.status.phase) && oldSelf.status.phase == 'Suspended')"
    return [
        {
            "rule": f"{suspended} || ({_unchanged(f'spec.{name}')})",
            "message": f"spec.{name} can be changed while the job is Suspended only; set spec.suspend first",
        }
        for name in ("head", "workers")
    ]


ROOT_RULES = _unless_suspended()

_CANCEL_RULE: Rules = [
    {
        "rule": "!has(oldSelf.cancel) || !oldSelf.cancel || (has(self.cancel) && self.cancel)",
        "message": "spec.cancel is final: a cancelled job cannot be taken up again; make a new FinetuneJob",
    }
]

_ACCELERATOR_RULE: Rules = [
    {
        "rule": "!has(self.accelerator) || (has(self.config.Training) && has(self.config.Training.device) && "
        "self.config.Training.device.lowerAscii() == 'gpu')",
        "message": "accelerator goes with config.Training.device GPU",
    }
]

_DATA_FILES = ("train_file", "validation_file")
_OUTSIDE = ("/", "-", "~")
_DATA_FILE_MESSAGE = (
    "must be a relative path without '..': it is looked up in spec.dataset, or in the image; "
    "`finetune convert` maps a path of your machine"
)


def _data_file_rules() -> Rules:
    rules: Rules = []
    for name in _DATA_FILES:
        file = f"self.config.Dataset.{name}"
        outside = [f"{file}.startsWith('{first}')" for first in _OUTSIDE] + [f"{file}.split('/').exists(part, part == '..')"]
        rule = " && ".join(f"!{condition}" for condition in outside)
        guard = "" if name == "train_file" else f"!has({file}) || "
        rules.append({"rule": f"{guard}({rule})", "message": f"config.Dataset.{name} {_DATA_FILE_MESSAGE}"})
    return rules


class FinetuneJobSpec(Model):
    """What to finetune, on what, and where the result goes."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": _immutable() + _CANCEL_RULE + _ACCELERATOR_RULE + _data_file_rules()}
    )

    config: TrainerConfig
    """A finetuning YAML of llm-on-ray, verbatim: what `llm_on_ray-finetune --config_file` takes."""
    image: Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@-]*$")] | None = (
        None
    )
    """Trainer image. Default: the operator's image for the device."""
    accelerator: Accelerator | None = None
    """GPU resource for device GPU: i915 (gpu.intel.com/i915, the default), xe (gpu.intel.com/xe) or nvidia (nvidia.com/gpu)."""
    dataset: DatasetSource | None = None
    """Where train_file is found. Default: a file in the image, or a data set of the hub."""
    model: ModelSource | None = None
    """Where the base model is found. Default: the hub."""
    output: Output
    """Where the result goes."""
    head: HeadOptions | None = None
    """The head pod; it may be changed while the job is Suspended."""
    workers: WorkerOptions | None = None
    """The worker pods; they may be changed while the job is Suspended."""
    retry_policy: RetryPolicy | None = None
    """How often a lost run is taken up again. Default: three attempts in all."""
    checkpoint: CheckpointPolicy | None = None
    """When checkpoints are written. Default: every 100 steps, and the newest two are kept."""
    resume_from: (
        Annotated[str, StringConstraints(min_length=1, max_length=MAX_JOB_NAME, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")] | None
    ) = None  # fmt: skip
    """An earlier job of this namespace: begin from its newest checkpoint, once it has ended or is suspended."""
    suspend: bool = False
    """Write a checkpoint and delete all pods; false again: resume from it."""
    cancel: bool = False
    """Stop the job for good. It cannot be taken back."""
    provisioning_timeout_seconds: Seconds | None = None
    """Time from the acceptance of the job to the start of its training; then it fails. Default: no limit."""
    active_deadline_seconds: Seconds | None = None
    """Time that the training may take; then it fails. Default: no limit."""
    stall_timeout_seconds: Seconds = STALL_TIMEOUT_SECONDS
    """Time without a new step after which the job is shown as stalled. It is not ended."""
    cluster_ttl_seconds: ClusterTTL | None = Field(default=None, alias="clusterTTLSeconds")
    """How long the Ray cluster is kept when the job has ended. Default: it goes at once."""
    ttl_seconds_after_finished: TimeToLive | None = None
    """Time after its end at which the job itself is deleted; its output claim stays, unless output.deleteWithJob.
    Default: never."""

    @model_validator(mode="after")
    def _accelerator_needs_gpu(self) -> Self:
        if self.accelerator and self.config.training.device != "gpu":
            raise ValueError("accelerator goes with config.Training.device GPU")
        return self

    @model_validator(mode="after")
    def _data_files_stay_inside(self) -> Self:
        for name in _DATA_FILES:
            path = getattr(self.config.dataset, name)
            if path is not None and (path.startswith(_OUTSIDE) or ".." in path.split("/")):
                raise ValueError(f"config.Dataset.{name} {_DATA_FILE_MESSAGE}")
        return self
