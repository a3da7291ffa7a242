"""The closed list of reasons. Each stands with what happened, what the operator did and what the user can do: from this
list docs/reference/reasons.md is rendered, so that none can be missing there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Reason(StrEnum):
    """Why a job is where it is."""

    ACCEPTED = "Accepted"
    CLAIM_NOT_FOUND = "ClaimNotFound"
    CLAIM_NOT_BOUND = "ClaimNotBound"
    CONFIG_MAP_NOT_FOUND = "ConfigMapNotFound"
    PRIORITY_CLASS_NOT_FOUND = "PriorityClassNotFound"
    JOB_NOT_FOUND = "JobNotFound"
    WAITING_FOR_JOB = "WaitingForJob"
    NO_SUCH_RESOURCE = "NoSuchResource"
    QUOTA_EXCEEDED = "QuotaExceeded"
    CREATION_REFUSED = "CreationRefused"
    KUBERAY_NOT_INSTALLED = "KubeRayNotInstalled"
    KUBERAY_NOT_RESPONDING = "KubeRayNotResponding"
    FETCHING = "Fetching"
    FETCH_RETRYING = "FetchRetrying"
    FETCHED = "Fetched"
    QUEUED = "Queued"
    PREEMPTED = "Preempted"
    ADMITTED = "Admitted"
    CLUSTER_STARTING = "ClusterStarting"
    UNSCHEDULABLE = "Unschedulable"
    IMAGE_PULL_FAILED = "ImagePullFailed"
    SECRET_NOT_FOUND = "SecretNotFound"  # noqa: S105 - a reason
    CLUSTER_READY = "ClusterReady"
    POD_FAILED = "PodFailed"
    EVICTED = "Evicted"
    WORKER_LOST = "WorkerLost"
    SUBMISSION_FAILED = "SubmissionFailed"
    DASHBOARD_UNREACHABLE = "DashboardUnreachable"
    TOKEN_KEY_LOST = "TokenKeyLost"  # noqa: S105 - a reason
    SUBMITTED = "Submitted"
    TRAINING_STARTING = "TrainingStarting"
    TRAINING_RUNNING = "TrainingRunning"
    STALLED = "Stalled"
    OUTPUT_CLAIM_DELETING = "OutputClaimDeleting"
    RETRYING = "Retrying"
    SUSPENDED_BY_USER = "SuspendedByUser"
    CHECKPOINTED = "Checkpointed"
    COMPLETED = "Completed"
    CANCELLED_BY_USER = "CancelledByUser"
    INVALID_SPEC = "InvalidSpec"
    NAME_CONFLICT = "NameConflict"
    PROVISIONING_TIMEOUT = "ProvisioningTimeout"
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    HEAD_LOST = "HeadLost"
    WORKER_OOM_KILLED = "WorkerOOMKilled"
    DATASET_NOT_FOUND = "DatasetNotFound"
    DATASET_INVALID = "DatasetInvalid"
    DATASET_ACCESS_DENIED = "DatasetAccessDenied"
    CHECKSUM_MISMATCH = "ChecksumMismatch"
    FETCH_VOLUME_FULL = "FetchVolumeFull"
    FETCH_FAILED = "FetchFailed"
    MODEL_NOT_FOUND = "ModelNotFound"
    MODEL_ACCESS_DENIED = "ModelAccessDenied"
    MODEL_INVALID = "ModelInvalid"
    DEVICE_NOT_FOUND = "DeviceNotFound"
    LOSS_NOT_FINITE = "LossNotFinite"
    OUTPUT_VOLUME_FULL = "OutputVolumeFull"
    OUTPUT_MISSING = "OutputMissing"
    OUT_OF_MEMORY = "OutOfMemory"
    TRAINING_FAILED = "TrainingFailed"


@dataclass(frozen=True)
class Problem:
    """What keeps a job, a pod or a request from going on: a reason, and a message for the user."""

    reason: Reason
    message: str


@dataclass(frozen=True)
class Explanation:
    """The explanation of a reason for users."""

    happened: str
    did: str
    remedy: str = ""
    """Empty: nothing has to be done."""


_WAITS = "The job waits. The operator looks again every five seconds and then continues by itself."
_TRIES = "The operator tries again."
_ENDED = "The job has failed, and its Ray cluster is deleted."

WAITING: dict[Reason, Explanation] = {
    Reason.ACCEPTED: Explanation(
        "The spec is valid and everything that it names exists. The message of the condition Validated names keys of the "
        "config that have no effect.",
        "It makes the Ray cluster.",
    ),
    Reason.CLAIM_NOT_FOUND: Explanation(
        "A PersistentVolumeClaim that the spec names does not exist in the job's namespace.",
        _WAITS,
        "Create the claim; or delete the job and correct the name.",
    ),
    Reason.CLAIM_NOT_BOUND: Explanation(
        "A pod waits for a volume that is not available; the message is the scheduler's.",
        "The pod waits.",
        "Look at the claim (`kubectl describe pvc`): its StorageClass may not exist, or have no room.",
    ),
    Reason.CONFIG_MAP_NOT_FOUND: Explanation(
        "The ConfigMap of `spec.dataset.configMap` does not exist in the job's namespace.",
        _WAITS,
        "Create the ConfigMap; or delete the job and correct the name.",
    ),
    Reason.PRIORITY_CLASS_NOT_FOUND: Explanation(
        "A PriorityClass that `head` or `workers` names does not exist. It is looked for in a cluster-wide install only; "
        "elsewhere KubeRay reports it with the pod.",
        _WAITS,
        "Take a name of `kubectl get priorityclasses`, or ask the administrator for the class.",
    ),
    Reason.JOB_NOT_FOUND: Explanation(
        "The FinetuneJob that `spec.resumeFrom` names, or the one from which that job was to start, does not exist in the "
        "job's namespace.",
        _WAITS,
        "Correct the name in a new job. The checkpoints of a job that was deleted stay on its output claim: the YAML's "
        "`General.resume_from_checkpoint` takes a folder.",
    ),
    Reason.WAITING_FOR_JOB: Explanation(
        "The FinetuneJob that `spec.resumeFrom` names has not ended and is not suspended, so its newest checkpoint is not "
        "written yet.",
        _WAITS,
        "Nothing; or suspend or cancel that job (`finetune suspend`, `finetune cancel`).",
    ),
    Reason.NO_SUCH_RESOURCE: Explanation(
        "No node of the cluster offers the GPU resource that a worker requests, or none offers enough. It is looked for "
        "in a cluster-wide install only, and only with the chart's `preflight.nodes`.",
        _WAITS,
        "See whether the device plugin runs (`kubectl describe node`), and whether `spec.accelerator` is the right one. "
        "Where nodes are added on demand, the administrator sets `preflight.nodes` to false.",
    ),
    Reason.QUOTA_EXCEEDED: Explanation(
        "A ResourceQuota of the namespace refuses an object or a pod of the job.",
        _TRIES,
        "Free quota, raise it, or ask for less in `head`, `workers` and `resources_per_worker`.",
    ),
    Reason.CREATION_REFUSED: Explanation(
        "The API server refuses an object of the job for another reason, such as an admission policy; the message has "
        "its answer. Or the administrator's policy does not allow what `head` or `workers` have asked for since the job began.",
        _TRIES,
        "Do what the message says.",
    ),
    Reason.KUBERAY_NOT_INSTALLED: Explanation(
        "The API server does not know RayClusters.", _TRIES, "Install KubeRay 1.6 or later."
    ),
    Reason.KUBERAY_NOT_RESPONDING: Explanation(
        "KubeRay has written no status of the job's RayCluster for 20 seconds.",
        "It waits: KubeRay makes the pods when it runs again.",
        "See whether KubeRay's operator runs and watches this namespace: `kubectl get pods -A -l "
        "app.kubernetes.io/name=kuberay-operator`.",
    ),
    Reason.FETCHING: Explanation(
        "A pod fetches the files of `dataset.uri` or `model.uri` onto the claim; `status.fetch` tells how far it is. No GPU is "
        "held meanwhile, and no deadline counts.",
        "It waits. What is already on the claim is not fetched again.",
    ),
    Reason.FETCH_RETRYING: Explanation(
        "Fetching the files of `dataset.uri` or `model.uri` has failed, and another try may succeed; the message says why.",
        "After the pause of `retryPolicy` the next try goes on where this one has ended.",
        "Read the message: is the server reachable from the cluster's pods (proxy, NetworkPolicy)? Or set `cancel: true`.",
    ),
    Reason.FETCHED: Explanation("What was to be fetched is on the claim; see `status.fetch`.", "It makes the Ray cluster."),
    Reason.QUEUED: Explanation(
        "Kueue holds the Ray cluster back, because the job has a `kueue.x-k8s.io/queue-name`; the message has its reason.",
        "It waits. No deadline counts.",
    ),
    Reason.PREEMPTED: Explanation(
        "Kueue has preempted the run for a job of higher priority.",
        "When the queue admits the Ray cluster again, the next attempt resumes from the newest checkpoint. The preemption "
        "does not count against `retryPolicy`, and no deadline counts while the job waits.",
    ),
    Reason.ADMITTED: Explanation("Kueue has admitted the Ray cluster.", "It waits for the pods."),
    Reason.CLUSTER_STARTING: Explanation("Head and workers are starting; the message counts them.", "It waits."),
    Reason.UNSCHEDULABLE: Explanation(
        "No node accepts a pod of the job; the message is the scheduler's.",
        "The pod waits for a node. When pods of an older job wait, too, for 30 seconds, the job gives its own back and tries "
        "again: as soon as no older job waits, or after a pause that doubles. Jobs with a queue are left to it.",
        "Add nodes, or ask for less in `head`, `workers` and `resources_per_worker`; for GPUs, see what nodes offer.",
    ),
    Reason.IMAGE_PULL_FAILED: Explanation(
        "A node cannot pull the trainer image.",
        "The kubelet tries again.",
        "Correct `spec.image` or the chart's `trainer.image`, or give `imagePullSecrets`.",
    ),
    Reason.SECRET_NOT_FOUND: Explanation(
        "A Secret or a key in it is missing, most likely that of `spec.model.tokenSecretRef`. The operator may not read "
        "Secrets, so this shows when a pod is to start.",
        "The kubelet tries again.",
        "Create the Secret with that key.",
    ),
    Reason.POD_FAILED: Explanation(
        "A container of the job cannot be started, or has ended; the message has its exit code and last output.",
        "KubeRay makes a new worker pod; when the head has ended, the operator makes a new cluster.",
        "Read the message. An image of your own needs Ray and the trainer in the versions of the operator's.",
    ),
    Reason.EVICTED: Explanation(
        "A node has evicted a pod of the job: it was drained, shut down or short of memory or disk, or a pod of higher "
        "priority needed it.",
        "KubeRay makes a new worker pod, and the run resumes from its newest checkpoint.",
        "Nothing; or give the pods a higher `priorityClassName`.",
    ),
    Reason.WORKER_LOST: Explanation(
        "A worker of the run was lost; the message has what is known of the cause.",
        "Ray restarts all workers from the newest checkpoint. If it cannot, the operator begins another attempt.",
        "Nothing. If it happens repeatedly, look at the nodes and at the memory of the workers.",
    ),
    Reason.CLUSTER_READY: Explanation("Head and workers are ready.", "It waits for the run to start."),
    Reason.SUBMISSION_FAILED: Explanation(
        "Ray refuses the driver, or has accepted it and does not know it; the message has its answer.",
        "It tries again, after pauses of up to a minute.",
        "Do what the message says.",
    ),
    Reason.DASHBOARD_UNREACHABLE: Explanation(
        "The head is ready, and its Ray dashboard has not answered the operator for 15 seconds; the message says why. "
        "A run goes on meanwhile, but nobody sees its progress or its end.",
        "It asks again, after pauses of up to half a minute. The job neither fails nor begins another attempt by this.",
        "No answer: let the operator's pod reach port 8265 of the namespace's pods (NetworkPolicy, service mesh). A name that "
        "cannot be resolved: set the chart's `clusterDomain`. A token that is refused (401): see whether somebody has replaced "
        "the job's Secret. Anything else: `kubectl logs` of the head pod.",
    ),
    Reason.TOKEN_KEY_LOST: Explanation(
        "The job's Ray cluster has a token of a master key that the operator does not have any more; the message names the "
        "key. The run goes on, but nobody sees its progress or its end.",
        "It asks the dashboard nothing, and uses no other key: another key makes another token.",
        "The administrator appends the old key to the operator's Secret, on a line of its own behind the current one, and "
        "restarts the operator. If the key is gone, set `cancel: true`; a new job may resume from the checkpoint "
        "(`resumeFrom`).",
    ),
    Reason.SUBMITTED: Explanation("Ray has the driver.", "It waits for the run to start."),
    Reason.TRAINING_STARTING: Explanation(
        "All pods are ready, and the trainer loads model and rows.", "It waits for the first step."
    ),
    Reason.TRAINING_RUNNING: Explanation("The run takes steps.", "It copies the progress into the status."),
    Reason.STALLED: Explanation(
        "No step was taken for `stallTimeoutSeconds`. The condition Progressing is False.",
        "It continues to watch: the next step makes Progressing True again.",
        "Look at the pods (`kubectl top pods`, `kubectl logs`): the volume may hang, a download may wait, or the node may "
        "swap. Raise `stallTimeoutSeconds` when a step takes that long; set `cancel: true` to give up.",
    ),
    Reason.RETRYING: Explanation(
        "An attempt has failed, and another one may succeed; the message says why, and when the next begins. "
        "`status.attemptHistory` lists the attempts.",
        "After the pause of `retryPolicy` it begins the next attempt, from the newest checkpoint: on the same Ray cluster "
        "when that is healthy, else on a new one.",
        "Nothing; or set `cancel: true`.",
    ),
    Reason.OUTPUT_CLAIM_DELETING: Explanation(
        "Somebody has deleted the output claim. Kubernetes keeps it as long as a pod of the job uses it; then the checkpoints "
        "and the model are gone.",
        "The run goes on. When it has ended, its pods are kept for an hour, so that the result can be copied; then the job "
        "fails with this reason.",
        "Copy the folder with the command in the message, then cancel the job. A deletion cannot be taken back.",
    ),
    Reason.SUSPENDED_BY_USER: Explanation(
        "`spec.suspend` was set to true.",
        "The trainer is asked for a checkpoint; then the Ray cluster is deleted, and its CPUs and GPUs are free.",
        "Set `suspend: false` to resume from the checkpoint.",
    ),
    Reason.CHECKPOINTED: Explanation("A complete checkpoint is on the output claim.", "It shows it."),
}
"""Reasons of a job that has not ended."""

NEEDS_ATTENTION = frozenset(reason for reason, text in WAITING.items() if text.remedy) - {Reason.SUSPENDED_BY_USER}
"""Reasons of a job that has not ended which somebody can do something about. Their events are warnings."""

ENDED: dict[Reason, Explanation] = {
    Reason.COMPLETED: Explanation(
        "The result is complete on the volume: `status.output` says where, with the SHA-256 of its manifest.",
        "The Ray cluster is deleted, after `clusterTTLSeconds.onSuccess`.",
        "Use the model.",
    ),
    Reason.CANCELLED_BY_USER: Explanation(
        "`spec.cancel` was set to true.", "The Ray cluster is deleted. The output claim is not changed."
    ),
    Reason.INVALID_SPEC: Explanation(
        "The spec, or a value that does not fit the model (such as a LoRA target that it does not have), is wrong, or "
        "the administrator does not allow it; every error is in the message with its key.",
        "It creates nothing for the job, or deletes its Ray cluster.",
        "Correct it in a new job.",
    ),
    Reason.NAME_CONFLICT: Explanation(
        "A RayCluster, ConfigMap or claim of the name that the job needs exists, and it is not the one that the operator "
        "would make: another owner, or other content.",
        "It touches neither. The job fails because of a RayCluster; because of the others it waits.",
        "Delete that object, or choose another name for the job.",
    ),
    Reason.PROVISIONING_TIMEOUT: Explanation(
        "The training did not start within `provisioningTimeoutSeconds`; the message says what it was waiting for.",
        _ENDED,
        "Fix what the message names, or allow more time.",
    ),
    Reason.DEADLINE_EXCEEDED: Explanation(
        "The training took longer than `activeDeadlineSeconds`.",
        _ENDED,
        "Allow more time, use more workers, or train fewer epochs.",
    ),
    Reason.HEAD_LOST: Explanation(
        "The head pod, or the whole RayCluster, was lost while the job ran, and the driver with it.",
        _ENDED,
        "See why in the events of node and namespace, and run the job again.",
    ),
    Reason.WORKER_OOM_KILLED: Explanation(
        "A container exceeded its memory limit; the message names the pod.",
        _ENDED,
        "Raise `workers.memory` (`head.memory` where it was the head or the fetch), or lower `batch_size` (with more "
        "`gradient_accumulation_steps`) or `max_length`.",
    ),
    Reason.DATASET_NOT_FOUND: Explanation(
        "`train_file` or `validation_file` does not exist, or nothing is at `dataset.uri`; the message says where it was sought.",
        _ENDED,
        "Correct the path: it is relative to `spec.dataset`, or to the image's folder without it. Or correct `dataset.uri`.",
    ),
    Reason.DATASET_ACCESS_DENIED: Explanation(
        "The server of `dataset.uri` does not let this job read the file.",
        _ENDED,
        "Give a token in `dataset.tokenSecretRef`, accept the licence of a gated data set, or renew a signed address.",
    ),
    Reason.CHECKSUM_MISMATCH: Explanation(
        "What was fetched from `dataset.uri` or `model.uri` is not the file that `sha256`, or the hub, says; it was not kept.",
        _ENDED,
        "Has the file been replaced? Correct `dataset.sha256`, or the address, in a new job.",
    ),
    Reason.FETCH_VOLUME_FULL: Explanation(
        "The claim has no room for the files of `dataset.uri` or `model.uri`.",
        _ENDED,
        "Make the claim larger (`output.size`, or the claim of `dataset` or `model`), or delete what is not needed any more.",
    ),
    Reason.FETCH_FAILED: Explanation(
        "The files of `dataset.uri` or `model.uri` cannot be fetched; the message says why.",
        _ENDED,
        "Read the message: is the server reachable from the cluster's pods (proxy, NetworkPolicy)? A new job with the same "
        "address and claim goes on where this one has ended.",
    ),
    Reason.DATASET_INVALID: Explanation(
        "Rows are broken; the message names file and line of the first ones.",
        _ENDED,
        "Each line must be a JSON object with `instruction` and `response`, and may have `context`.",
    ),
    Reason.MODEL_NOT_FOUND: Explanation(
        "The base model or its tokenizer cannot be loaded; the message says from where.",
        _ENDED,
        "See `spec.model` and `base_model`. A private model is not found without a token: `model.tokenSecretRef`.",
    ),
    Reason.MODEL_ACCESS_DENIED: Explanation(
        "The hub does not let this user download the model: it is gated, or the token is not valid or may not read it.",
        _ENDED,
        "Accept the licence on the model's page, which the message names, and give a token of that account in "
        "`model.tokenSecretRef`.",
    ),
    Reason.MODEL_INVALID: Explanation(
        "A file of the model is cut off or broken, or the weights do not match `config.json`; the message names the file.",
        _ENDED,
        "Copy or download the model again, or correct `config.json`.",
    ),
    Reason.DEVICE_NOT_FOUND: Explanation(
        "Device GPU was requested, and the worker has none that torch can use; the message names the pod, the GPUs that Ray "
        "assigned, and what is missing.",
        _ENDED,
        "Use a trainer image for the GPU, on a node with a working driver.",
    ),
    Reason.LOSS_NOT_FINITE: Explanation(
        "The loss, the gradients or the weights became NaN or infinite; the message names the step and its rows. Nothing of it "
        "is in a checkpoint or a result.",
        _ENDED,
        "Lower `learning_rate`, or use `mixed_precision: bf16` or `no` instead of `fp16`.",
    ),
    Reason.OUTPUT_VOLUME_FULL: Explanation(
        "The output claim has no room left.", _ENDED, "Make it larger, or delete what is not needed any more."
    ),
    Reason.OUTPUT_MISSING: Explanation(
        "The trainer ended without an error and without a manifest.",
        _ENDED,
        "This is a fault of the trainer image: was it replaced by one of your own?",
    ),
    Reason.OUT_OF_MEMORY: Explanation(
        "Memory of the host or of the device, as the message says, ran out within the trainer.",
        _ENDED,
        "The message says what to change in the configuration: a lower `batch_size` with more `gradient_accumulation_steps`, "
        "`enable_gradient_checkpointing: true`, `lora_config`, `accelerate_mode: FSDP`, a lower `max_length`, more memory.",
    ),
    Reason.TRAINING_FAILED: Explanation(
        "The trainer failed for another reason; the message has the end of its output.",
        _ENDED,
        "Read the message and the run's logs.",
    ),
}
"""Reasons of a job that has ended."""
