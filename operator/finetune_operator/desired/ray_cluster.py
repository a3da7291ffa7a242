"""The RayCluster of one attempt. It is created once and never re-applied: others may edit its replicas."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob, PodOptions, dump
from finetune_operator.constants import (
    HUB_CACHE_MOUNT,
    KEY_ANNOTATION,
    RAY_CONTAINER_UID,
    RAY_VERSION,
    S3,
    STOP_GRACE_SECONDS,
)
from finetune_operator.desired import naming
from finetune_operator.desired.accelerators import gpu_resources
from finetune_operator.desired.config_map import config_digest
from finetune_operator.desired.defaults import pod_defaults
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.desired.storage import build_volumes
from finetune_operator.settings import Settings
from finetune_trainer.config.yaml_file import DIGEST_VARIABLE

HEAD_ANNOTATIONS = {"ray.io/disable-provisioned-head-restart": "true"}
"""It stops KubeRay from replacing a lost head: a new head would not know the job, and the loss would look like a job that
was never submitted."""

TERMINATION_SECONDS = 10
"""A run that is to be suspended is stopped before: nothing needs more time, and the resources of the pod are free sooner."""

HEAD_ENVIRONMENT = [{"name": "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "value": "0"}]
"""At SIGTERM Ray would wait 30 s for the end of its actors, some of which never end, and the kubelet would kill it after ten.
Workers keep that wait: it ends with the training, and notifies it before."""

OBJECT_STORE_BYTES = "209715200"
"""Ray's object store, 200 MiB: Ray Train moves no data through it here, and it counts against the pod's memory."""

_SECURITY = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
"""What Pod Security ``restricted`` asks of each container; KubeRay copies it to its init containers."""


_COPIED = ("affinity", "imagePullSecrets", "nodeSelector", "priorityClassName", "tolerations")
"""The parts of a pod's spec that the user wrote."""


def build_ray_cluster(job: FinetuneJob, attempt: int, settings: Settings, keys: KeyRing) -> dict[str, Any]:
    """A head that runs the driver and never trains, and one worker pod for each training worker."""
    metadata = naming.metadata(job, naming.cluster_name(job, attempt), attempt=attempt)
    labels = naming.scheduling_labels(job.metadata.labels) | metadata["labels"]
    workers = job.spec.config.training.num_training_workers
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": metadata | {"labels": labels, "annotations": HEAD_ANNOTATIONS | {KEY_ANNOTATION: keys.current_id}},
        "spec": {
            "rayVersion": RAY_VERSION,
            "authOptions": {"mode": "token", "secretName": keys.secret_name(job)},
            "headGroupSpec": {
                "rayStartParams": {
                    "num-cpus": "0",
                    "num-gpus": "0",
                    "dashboard-host": "0.0.0.0",  # noqa: S104 - the operator calls it; token authentication is on
                    "object-store-memory": OBJECT_STORE_BYTES,
                },
                "template": _head_template(job, attempt, settings),
            },
            "workerGroupSpecs": [
                {
                    "groupName": "workers",
                    "replicas": workers,
                    "minReplicas": workers,
                    "maxReplicas": workers,
                    "rayStartParams": {
                        "num-cpus": str(math.ceil(job.spec.config.training.resources_per_worker.CPU)),
                        "num-gpus": str(job.spec.config.training.resources_per_worker.GPU),
                        "object-store-memory": OBJECT_STORE_BYTES,
                    },
                    "template": _worker_template(job, attempt, settings),
                }
            ],
        },
    }


def head_resources(job: FinetuneJob, settings: Settings) -> dict[str, Any]:
    """What the head asks for, and the pod that fetches before it."""
    head = job.spec.head
    defaults = pod_defaults(job, settings)
    memory = head.memory if head and head.memory else defaults.head_memory
    cpu = head.cpu if head and head.cpu else defaults.head_cpu
    return {"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}}


def _head_template(job: FinetuneJob, attempt: int, settings: Settings) -> dict[str, Any]:
    template = _pod_template(job, attempt, settings, "ray-head", head_resources(job, settings), job.spec.head)
    template["spec"]["containers"][0]["env"][:0] = HEAD_ENVIRONMENT
    return template


def _worker_template(job: FinetuneJob, attempt: int, settings: Settings) -> dict[str, Any]:
    workers = job.spec.workers
    defaults = pod_defaults(job, settings)
    memory = workers.memory if workers and workers.memory else defaults.worker_memory
    cpu = f"{max(1, round(job.spec.config.training.resources_per_worker.CPU * 1000))}m"
    gpus = gpu_resources(job)
    # no CPU limit: throttling would delay one rank in the middle of a step, and all others would wait for it
    resources = {"requests": {"cpu": cpu, "memory": memory} | gpus, "limits": {"memory": memory} | gpus}
    return _pod_template(job, attempt, settings, "ray-worker", resources, workers)


def _pod_template(
    job: FinetuneJob,
    attempt: int,
    settings: Settings,
    container: str,
    resources: dict[str, Any],
    options: PodOptions | None,
) -> dict[str, Any]:
    template = base_template(job, settings, container, resources, options)
    volumes, mounts = build_volumes(job)
    template["spec"]["volumes"][:0] = volumes
    template["spec"]["containers"][0]["volumeMounts"][:0] = mounts
    template["metadata"]["labels"] |= naming.labels(job, attempt)
    return template


def base_template(
    job: FinetuneJob, settings: Settings, container: str, resources: dict[str, Any], options: PodOptions | None
) -> dict[str, Any]:
    """A pod of the job, without volumes but for /tmp."""
    defaults = pod_defaults(job, settings)
    chosen = dump(options) if options else {}
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": TERMINATION_SECONDS,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": RAY_CONTAINER_UID,
            "runAsGroup": RAY_CONTAINER_UID,
            "fsGroup": RAY_CONTAINER_UID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": container,
                "image": defaults.image,
                "imagePullPolicy": defaults.image_pull_policy,
                "env": _environment(job, settings.trainer_env, chosen.get("env", [])),
                "resources": resources,
                "securityContext": dict(_SECURITY),
                # Ray's session folder, in the pod's own volume
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                # the last output of a container goes into the pod's status, and so into the job's
                "terminationMessagePolicy": "FallbackToLogsOnError",
            }
        ],
        "volumes": [{"name": "tmp", "emptyDir": {}}],
    }
    spec |= {key: chosen[key] for key in _COPIED if chosen.get(key)}
    metadata: dict[str, Any] = {"labels": chosen.get("labels", {}) | naming.labels(job)}
    if chosen.get("annotations"):
        metadata["annotations"] = chosen["annotations"]
    return {"metadata": metadata, "spec": spec}


def _environment(job: FinetuneJob, given: Mapping[str, str], chosen: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The operator's variables, then those of the user, then those of the administrator that neither has."""
    variables = _own_variables(job)
    variables += [variable for variable in chosen if variable["name"] not in _names(variables)]
    return variables + [{"name": name, "value": value} for name, value in given.items() if name not in _names(variables)]


def _names(variables: list[dict[str, Any]]) -> set[str]:
    return {variable["name"] for variable in variables}


def _own_variables(job: FinetuneJob) -> list[dict[str, Any]]:
    variables: list[dict[str, Any]] = [
        {"name": "POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"},
        {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": str(STOP_GRACE_SECONDS)},
        {"name": DIGEST_VARIABLE, "value": config_digest(job)},
    ]
    model = job.spec.model
    if model and model.token_secret_ref and not (model.uri or "").startswith(S3):
        reference = {"name": model.token_secret_ref.name, "key": model.token_secret_ref.key}
        variables.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": reference}})
    if model and model.cache:
        variables.append({"name": "HF_HOME", "value": HUB_CACHE_MOUNT})
    return variables
