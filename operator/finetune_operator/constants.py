"""Names and numbers that several modules share; the text below each explains its value."""

from __future__ import annotations

GROUP = "llmonray.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FinetuneJob"
PLURAL = "finetunejobs"

RAY_GROUP = "ray.io"
RAY_VERSION_API = "v1"
RAY_PLURAL = "rayclusters"

FIELD_MANAGER = "finetune-operator"
"""Who wrote a field, in managedFields, and the source of events."""

JOB_LABEL = f"{GROUP}/finetunejob"
"""Name of the FinetuneJob on every object made for it; what maps a RayCluster or pod back to its job."""

UID_LABEL = f"{GROUP}/finetunejob-uid"
"""UID of the FinetuneJob: tells a job's objects from those of an earlier job of the same name."""

ATTEMPT_LABEL = f"{GROUP}/attempt"

KEY_ANNOTATION = f"{GROUP}/token-key"
"""Which master key a cluster's Ray token was made with, so that a changed key does not orphan live clusters."""

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"

SCHEDULING_LABELS = (
    QUEUE_LABEL,
    "kueue.x-k8s.io/priority-class",
    "ray.io/priority-class-name",
    "volcano.sh/queue-name",
    "volcano.sh/network-topology-mode",
    "volcano.sh/network-topology-highest-tier-allowed",
    "yunikorn.apache.org/app-id",
    "yunikorn.apache.org/queue",
    "kai.scheduler/queue",
)
"""Labels of a job that are put on its RayCluster: Kueue's, and those of the batch schedulers that KubeRay 1.6 can be
started with (ray-operator/controllers/ray/batchscheduler)."""

RAY_CLUSTER_LABEL = "ray.io/cluster"
"""KubeRay's label on a pod: the name of its RayCluster."""

MANAGED_BY_LABEL = "app.kubernetes.io/managed-by"

RAY_VERSION = "2.60.0"
"""Ray release in the trainer image (requirements/trainer.txt). KubeRay refuses token authentication below 2.52."""

DASHBOARD_PORT = 8265

MAX_JOB_NAME = 40
"""RayCluster names are at most 53 characters and ours are ``<job>-<uid5>-<attempt>``; KubeRay appends to that name."""

OUTPUT_MOUNT = "/output"
DATA_MOUNT = "/data"
MODEL_MOUNT = "/model"
HUB_CACHE_MOUNT = "/hub-cache"
RESUME_MOUNT = "/resume"
"""Output claim of the job that spec.resumeFrom names, where it is not the job's own."""
S3 = "s3://"
"""How the addresses of objects begin."""

FETCH_FOLDER = "fetched"
"""Folder on a claim, or in its sub-path, for what is fetched by an address."""

FETCH_PORT = 8266
"""Where the pod that fetches tells its progress."""

FETCH_LABEL = f"{GROUP}/fetch"
"""On the pod that fetches: which try it is."""

CONFIG_MOUNT = "/etc/finetune"
CONFIG_FILE = "config.yaml"

TOKEN_SECRET_KEY = "auth_token"  # noqa: S105 - the key's name, as KubeRay expects it, not a secret
RAY_CONTAINER_UID = 1000
"""User of the trainer image."""

STOP_GRACE_SECONDS = 120
"""Time that a run has to write a checkpoint after a request to stop."""

MESSAGE_LIMIT = 4096
"""Longest status.message in characters: the end of a log fits, and the object stays far below etcd's limits."""

RESYNC_SECONDS = 300.0
"""Every job is reconciled at least this often, in case an event was lost."""

RELIST_PAUSE_SECONDS = 2.0
"""A watch that could not continue (410) has missed deletions. Our own LIST, which finds them, follows when kopf's LIST has
delivered nothing for this time."""

PROGRESS_WRITE_SECONDS = 5.0
"""Least time between two writes that change nothing but progress: it bounds the load on the API server."""

PROGRESS_HEARTBEAT_SECONDS = 30.0
"""A change of progress by less than one percent is still written at this interval."""
