"""What a reconcile has observed, frozen: the input of `decide`, with the job and the time."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from pydantic import ValidationError

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import Reason, ResolvedDefaults, ResumeStatus
from finetune_operator.pod_problems import find_problem
from finetune_trainer.fetch.report import FetchProgress, FetchReport
from finetune_trainer.tracking.progress import Progress

Raw = Mapping[str, Any]


def _conditions(status: Raw) -> dict[str, Raw]:
    """The conditions of an object's status by their type."""
    return {condition["type"]: condition for condition in status.get("conditions") or ()}


@dataclass(frozen=True)
class Cluster:
    """The relevant fields of a RayCluster."""

    name: str
    uid: str
    owner_uid: str | None
    deleting: bool
    suspended: bool
    """Held back by Kueue."""
    head_ready: bool
    head_lost: bool
    head_ip: str
    key_id: str | None
    workers_ready: int
    workers_desired: int
    message: str
    """The problem that KubeRay reports, or empty."""
    taken_up: bool = True
    """Whether KubeRay has written a status."""

    @classmethod
    def from_raw(cls, raw: Raw) -> Cluster:
        """Read a RayCluster object. Fields that KubeRay has not written yet read as not ready."""
        metadata, spec, status = raw["metadata"], raw.get("spec") or {}, raw.get("status") or {}
        conditions = _conditions(status)
        head = conditions.get("HeadPodReady", {})
        failure = conditions.get("ReplicaFailure", {})
        owners = [ref["uid"] for ref in metadata.get("ownerReferences") or () if ref.get("controller")]
        groups = spec.get("workerGroupSpecs") or ()
        # RayClusterProvisioned is sticky: once it is true, a head that is not found was lost, not slow
        provisioned = conditions.get("RayClusterProvisioned", {}).get("status") == "True"
        annotations = metadata.get("annotations") or {}
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            owner_uid=owners[0] if owners else None,
            deleting="deletionTimestamp" in metadata,
            suspended=bool(spec.get("suspend")),
            head_ready=head.get("status") == "True",
            head_lost=provisioned and head.get("status") == "False" and head.get("reason") == "HeadPodNotFound",
            head_ip=(status.get("head") or {}).get("podIP", ""),
            key_id=next((value for key, value in annotations.items() if key.endswith("/token-key")), None),
            workers_ready=status.get("readyWorkerReplicas") or 0,
            workers_desired=sum(group.get("replicas") or 0 for group in groups),
            message=failure.get("message", "") if failure.get("status") == "True" else "",
            taken_up=bool(status),
        )


@dataclass(frozen=True)
class Pod:
    """A pod of the cluster and what is wrong with it, if anything."""

    name: str
    is_head: bool
    ready: bool
    problem: Problem | None = None

    @classmethod
    def from_raw(cls, raw: Raw) -> Pod:
        """Read a Pod object."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        conditions = _conditions(status)
        return cls(
            name=metadata["name"],
            is_head=(metadata.get("labels") or {}).get("ray.io/node-type") == "head",
            ready=conditions.get("Ready", {}).get("status") == "True",
            problem=find_problem(raw),
        )


@dataclass(frozen=True)
class FetchPod:
    """The pod that fetches what the job names by addresses."""

    name: str
    uid: str = ""
    deleting: bool = False
    finished: bool = False
    """Whether it has ended, well or not: that does not change again."""
    ip: str = ""
    report: FetchReport | None = None
    """What it said at its end, if it can be read."""
    problem: Problem | None = None

    @classmethod
    def from_raw(cls, raw: Raw) -> FetchPod:
        """Read a Pod object."""
        metadata, status = raw["metadata"], raw.get("status") or {}
        return cls(
            name=metadata["name"],
            uid=metadata["uid"],
            deleting="deletionTimestamp" in metadata,
            finished=status.get("phase") in {"Succeeded", "Failed"},
            ip=str(status.get("podIP") or ""),
            report=_fetch_report(status),
            problem=find_problem(raw),
        )


def _fetch_report(status: Raw) -> FetchReport | None:
    for container in status.get("containerStatuses") or ():
        terminated = (container.get("state") or {}).get("terminated") or {}
        with suppress(ValidationError):
            return FetchReport.model_validate_json(str(terminated.get("message", "")))
    return None


def queue_message(workload: Raw) -> str:
    """Why a Workload of Kueue has no quota: a preemption is reported before waiting."""
    conditions = _conditions(workload.get("status") or {})
    preempted, reserved = conditions.get("Preempted", {}), conditions.get("QuotaReserved", {})
    words = [item.get("message", "") for item, waits in ((preempted, "True"), (reserved, "False")) if item.get("status") == waits]
    return "; ".join(filter(None, words))


@dataclass(frozen=True)
class RayJob:
    """What Ray says about the submission."""

    state: Literal["Unknown", "Missing", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]
    """Unknown: Ray did not answer, which is not a failure. Missing: Ray answered and does not know the id."""
    message: str = ""
    cause: str = field(default="", compare=False)
    """Why it is Unknown."""


UNKNOWN = RayJob("Unknown")

UNREACHABLE_SECONDS = 15.0
"""How long a dashboard may give no answer before the job says so: a head that is ready is not yet known to all of DNS and
kube-proxy, and a node may lose its network for a moment."""


@dataclass(frozen=True)
class Silence:
    """Why nothing is known of a run: its dashboard gives no answer, or cannot be asked."""

    since: datetime
    """When it was first asked in vain."""
    cause: str
    reason: Reason = Reason.DASHBOARD_UNREACHABLE

    def seconds_until_reported(self, now: datetime) -> float:
        """Seconds until the job says so; 0: now. A token that is lost does not come back by itself."""
        if self.reason is not Reason.DASHBOARD_UNREACHABLE:
            return 0.0
        return max(UNREACHABLE_SECONDS - (now - self.since).total_seconds(), 0.0)


@dataclass(frozen=True)
class Line:
    """The other jobs that wait for nodes because no node accepts their pods, without a queue such as Kueue's."""

    competing: bool = False
    """Whether another one has pods that wait."""
    older_competing: bool = False
    """Whether an older one has pods that wait."""
    older: bool = False
    """Whether there is an older one, with pods or in the pause after it has given them back."""


def missing_object(kind: str, key: str, name: str, namespace: str | None = None) -> Problem:
    """An object that a key of the spec names, and that does not exist; the namespace of one that has none is None."""
    where = f" in namespace {namespace!r}" if namespace else ""
    return Problem(_MISSING[kind], f"{kind} {name!r} (spec.{key}) does not exist{where}")


_MISSING = {
    "PersistentVolumeClaim": Reason.CLAIM_NOT_FOUND,
    "ConfigMap": Reason.CONFIG_MAP_NOT_FOUND,
    "PriorityClass": Reason.PRIORITY_CLASS_NOT_FOUND,
    "FinetuneJob": Reason.JOB_NOT_FOUND,
}


LOOK_AGAIN_SECONDS = 5.0
"""How soon a missing object is looked for the first time again."""


@dataclass(frozen=True)
class Observed:
    """Everything outside the job that a decision depends on."""

    missing: tuple[Problem, ...] = ()
    """Missing objects without which the job cannot start."""
    look_again: float = LOOK_AGAIN_SECONDS
    """Seconds until they are to be looked for again: longer the longer the job has waited."""
    resume: ResumeStatus | None = None
    """The source of a job that has not started, if spec.resumeFrom names another job."""
    cluster: Cluster | None = None
    pods: tuple[Pod, ...] = ()
    lost: tuple[Pod, ...] = ()
    """Deleted pods of the cluster and the causes of their deaths, as far as this process has observed them."""
    queue: str = ""
    """The reason of Kueue for holding the cluster back, if the operator may read it."""
    asked: bool = True
    """False: the dashboard was not asked yet, since the operator has just started or just acted. Its answer comes soon."""
    ray_job: RayJob = UNKNOWN
    silence: Silence | None = None
    """Set while the dashboard does not answer."""
    fetch: FetchPod | None = None
    """The pod of the current try at fetching."""
    fetch_progress: FetchProgress | None = None
    """How far it says that it is."""
    progress: Progress | None = None
    """What the trainer of the current attempt last reported."""
    start_problem: Problem | None = None
    """Why the objects of the attempt could not be made, or its driver not be submitted."""
    defaults: ResolvedDefaults | None = None
    """What the operator's settings give to a job that has not begun."""
    claim_deleting: bool = False
    """Whether somebody has deleted the output claim: it goes with the last pod that uses it."""
    line: Line | None = None
    """Other jobs that wait for nodes, if this one does."""

    @property
    def pod_problem(self) -> tuple[Pod, Problem] | None:
        """The first pod with a problem, and the problem; the head comes before workers."""
        found = [(pod, pod.problem) for pod in self.pods if pod.problem is not None]
        return min(found, key=lambda item: (not item[0].is_head, item[0].name), default=None)
