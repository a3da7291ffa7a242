"""``status`` of a FinetuneJob."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from finetune_operator.api.base import ImagePullPolicy, Model, ShortText, Text, Time
from finetune_operator.api.phases import Phase
from finetune_operator.api.spec import Accelerator, ClusterTTL, RetryPolicy, Seconds


class ConditionType(StrEnum):
    """Types of ``status.conditions``."""

    VALIDATED = "Validated"
    QUOTA_RESERVED = "QuotaReserved"
    FETCHED = "Fetched"
    CLUSTER_READY = "ClusterReady"
    SUBMITTED = "Submitted"
    PROGRESSING = "Progressing"
    CHECKPOINT_AVAILABLE = "CheckpointAvailable"
    SUSPENDED = "Suspended"
    OUTPUT_CLAIM_DELETING = "OutputClaimDeleting"
    COMPLETE = "Complete"
    FAILED = "Failed"
    FINISHED = "Finished"


class Condition(Model):
    """A metav1.Condition."""

    type: Annotated[str, StringConstraints(max_length=316)]
    """Which aspect it is about."""
    status: Literal["True", "False", "Unknown"]
    """True, False or Unknown."""
    reason: Annotated[str, StringConstraints(max_length=1024)]
    """Why, in one CamelCase word."""
    message: Text = ""
    """Why, in a sentence."""
    last_transition_time: Time
    """When status last changed."""
    observed_generation: int | None = None
    """The generation of the spec that it is about."""


class RayStatus(Model):
    """The Ray cluster and job of the current attempt."""

    cluster: ShortText
    """Name of the RayCluster."""
    submission_id: ShortText
    """Submission id of the Ray job."""
    dashboard_url: ShortText | None = Field(default=None, alias="dashboardURL")
    """The Ray dashboard, from inside the cluster."""
    workers_ready: int = 0
    """Worker pods that are ready."""
    workers_desired: int = 0
    """Worker pods that are wanted."""
    workers: Annotated[str, StringConstraints(max_length=16)] = ""
    """Ready and wanted workers, as 1/2."""
    request_time: Time | None = None
    """When the attempt was begun."""
    start_time: Time | None = None
    """When its training was first seen to run."""
    stop_time: Time | None = None
    """When the run was asked to stop."""
    end_time: Time | None = None
    """When the run was first seen to have ended without error; written while its report is awaited."""


class ProgressStatus(Model):
    """How far the training is."""

    display: Annotated[str, StringConstraints(max_length=8)] = "0%"
    """percent, for people."""
    percent: int = 0
    """0 to 100; 100 only when all steps are done."""
    step: int = 0
    """Optimizer steps done."""
    total_steps: int = 0
    """Optimizer steps of the whole run."""
    epoch: float = 0.0
    """Epochs done."""
    eta_seconds: int | None = None
    """Expected seconds until the last step."""
    loss: float | None = None
    """Training loss per supervised token."""
    eval_loss: float | None = None
    """Evaluation loss per supervised token."""
    learning_rate: float | None = None
    """Learning rate of the last step."""
    tokens_per_second: float | None = None
    """Non-padding tokens of all workers per second."""
    attempt: int = 1
    """The attempt that reported it."""
    restarts: int | None = None
    """How often the workers of this attempt were restarted after one was lost."""
    last_report_time: Time
    """When the trainer reported it, by the clock of its node."""
    step_time: Time | None = None
    """When the operator first saw this step, by its own clock: a stall is counted from here."""
    hosts: Annotated[tuple[ShortText, ...], Field(max_length=256)] = ()
    """Pod of each rank of the process group, by rank."""
    backend: ShortText | None = None
    """torch.distributed backend of the process group."""


class OutputStatus(Model):
    """Where the result lies."""

    persistent_volume_claim: ShortText
    """The claim."""
    path: ShortText
    """The folder on the claim."""
    format: Literal["peft-adapter", "full-model"] | None = None
    """What it holds; set when it is complete."""
    size_bytes: int | None = None
    """Size of its files."""
    manifest_sha256: Annotated[str, StringConstraints(max_length=64)] | None = Field(default=None, alias="manifestSHA256")
    """SHA-256 of its manifest.json, which lists every file with size and SHA-256."""


class ResultStatus(Model):
    """How good the model has become."""

    train_loss: float | None = None
    """Training loss at the end, per supervised token."""
    first_loss: float | None = None
    """Training loss of the first step."""
    eval_loss: float | None = None
    """Evaluation loss at the end, per supervised token."""
    perplexity: float | None = None
    """exp(evalLoss)."""


class AttemptStatus(Model):
    """An attempt that has ended."""

    attempt: int
    """Its number, from 1."""
    cluster: ShortText
    """Its RayCluster."""
    submission_id: ShortText
    """Its Ray submission id."""
    start_time: Time | None = None
    """When its training was first seen to run."""
    end_time: Time
    """When it was seen to have ended."""
    reason: ShortText
    """How it ended."""
    last_step: int | None = None
    """Optimizer steps that it had reported."""


class CheckpointStatus(Model):
    """The newest complete checkpoint."""

    step: int
    """Optimizer steps that it holds."""
    path: Text
    """Its folder, as the pods see it."""
    time: Time
    """When it was completed."""


class ResumeStatus(Model):
    """Where the job begins from; stored before anything is made, since the earlier job may be deleted."""

    job: ShortText
    """The earlier job that left it."""
    uid: ShortText
    """UID of that job."""
    persistent_volume_claim: ShortText | None = None
    """Its output claim, if it has ever run."""
    path: ShortText | None = None
    """Its folder on that claim."""


class FetchedStatus(Model):
    """What was fetched from an address."""

    version: Annotated[str, StringConstraints(max_length=16, pattern="^[0-9a-f]{16}$")]
    """Name of the version's folder on the claim."""
    origin: ShortText = ""
    """What the version is of: a commit, an ETag or a checksum."""
    files: int = 0
    """Number of files."""
    size_bytes: int = 0
    """Size of all files."""


class FetchStatus(Model):
    """The fetch of dataset.uri and model.uri, before the first attempt."""

    pod: ShortText
    """The pod that fetches."""
    attempt: int = 1
    """Which try this is, from 1; retryPolicy says how many there are."""
    request_time: Time
    """When it was begun."""
    failure_time: Time | None = None
    """When it was seen to have failed; another try follows."""
    display: Annotated[str, StringConstraints(max_length=8)] | None = None
    """How much is there, for people."""
    bytes: int | None = None
    """Bytes that are there."""
    total_bytes: int | None = None
    """Bytes of all files, if the server tells them."""
    dataset: FetchedStatus | None = None
    """The rows; set when they are there."""
    model: FetchedStatus | None = None
    """The base model; set when it is there."""


class ResolvedDefaults(Model):
    """What the spec leaves open, as it was when the first attempt began: an upgrade of the operator does not change a job
    that has begun.
    """

    image: ShortText
    """The trainer image."""
    image_pull_policy: ImagePullPolicy | None = None
    """How kubelets get it."""
    head_cpu: ShortText
    """CPU request of the head."""
    head_memory: ShortText
    """Memory of the head."""
    worker_memory: ShortText
    """Memory of a worker."""
    accelerator: Accelerator | None = None
    """GPU resource of a worker, for device GPU."""
    checkpoint_every_steps: int
    """Steps between two checkpoints; 0: none but that of a suspension."""
    checkpoint_keep: int
    """Checkpoints that are kept."""
    retry_policy: RetryPolicy | None = None
    """What holds for keys that spec.retryPolicy does not set."""
    stall_timeout_seconds: Seconds | None = None
    """What holds while spec.stallTimeoutSeconds is not set."""
    cluster_ttl_seconds: ClusterTTL | None = Field(default=None, alias="clusterTTLSeconds")
    """What holds for keys that spec.clusterTTLSeconds does not set."""


class FinetuneJobStatus(Model):
    """What the operator says about the job."""

    observed_generation: int | None = None
    """The generation of the spec that this status is about."""
    phase: Phase | None = None
    """Pending, Queued, Provisioning, Running, Suspending, Suspended, Retrying, Succeeded, Failed or Cancelled."""
    reason: Annotated[str, StringConstraints(max_length=128)] | None = None
    """Why, in one word; see docs/reference/reasons.md."""
    message: Text | None = None
    """Why, in a sentence."""
    conditions: Annotated[
        tuple[Condition, ...],
        Field(max_length=16, json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]}),
    ] = ()
    """The aspects of the state, by type."""
    start_time: Time | None = None
    """When training was first seen to run."""
    completion_time: Time | None = None
    """When the job ended."""
    failed_attempts: int | None = None
    """Attempts that count against retryPolicy.maxAttempts."""
    active_seconds: int | None = None
    """Seconds of training, summed over attempts; written when an attempt has ended."""
    attempt: int | None = None
    """The current attempt, from 1."""
    attempt_history: Annotated[tuple[AttemptStatus, ...], Field(max_length=5)] = ()
    """The last five attempts that have ended."""
    defaults: ResolvedDefaults | None = None
    """What the spec leaves open; written with the first attempt."""
    fetch: FetchStatus | None = None
    """The fetch of dataset.uri and model.uri."""
    ray: RayStatus | None = None
    """The Ray cluster and job of the current attempt."""
    progress: ProgressStatus | None = None
    """How far the training is."""
    checkpoint: CheckpointStatus | None = None
    """The newest complete checkpoint: a retry and a resumed job start from it."""
    output: OutputStatus | None = None
    """Where the result lies."""
    result: ResultStatus | None = None
    """How good the model has become."""
    resume: ResumeStatus | None = None
    """What spec.resumeFrom has come to."""
