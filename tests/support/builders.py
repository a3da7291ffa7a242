"""Jobs, observations and reports for tests: complete and plausible, so that a test names only what it is about."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from finetune_operator.api.reasons import Problem, Reason
from finetune_operator.api.v1alpha1 import (
    Condition,
    ConditionType,
    FinetuneJob,
    FinetuneJobStatus,
    OutputStatus,
    Phase,
    RayStatus,
    dump,
)
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.observed import Cluster, Observed, Pod, RayJob
from finetune_operator.settings import Settings
from finetune_trainer.tracking.progress import Progress

DATA = Path(__file__).resolve().parents[1] / "data"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UID = "1f0c3a7e-5d1b-4c7e-9a35-2b6f8d9e0c11"
OTHER_UID = "99999999-5d1b-4c7e-9a35-2b6f8d9e0c11"
CLUSTER_UID = "7c1d2e3f-0000-4000-8000-000000000001"
NAMESPACE = "team"
KEYS = KeyRing((b"k" * 64,))
SETTINGS = Settings(
    trainer_image="registry.example/trainer:1",
    trainer_image_gpu="registry.example/trainer-gpu:1",
    image_pull_policy="IfNotPresent",
    head_memory="4Gi",
    head_cpu="1",
    worker_memory="8Gi",
)

Raw = dict[str, Any]


def load_yaml(path: Path) -> Any:
    """A YAML 1.2 file as plain Python objects."""
    return copy.deepcopy(_parse(path.read_text(encoding="utf-8")))


@functools.cache
def _parse(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def merge(base: Any, patch: Any) -> Any:
    """JSON Merge Patch (RFC 7386): what the API server does with `application/merge-patch+json`."""
    if not isinstance(patch, Mapping):
        return patch
    result = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merge(result.get(key), value)
    return result


def raw_job(name: str = "cpu_ddp", *, spec: Raw | None = None, metadata: Raw | None = None, status: Any = None) -> Raw:
    """A job of `tests/data/jobs` as the API server holds it; ``spec`` and ``metadata`` are merged into it."""
    raw = load_yaml(DATA / "jobs" / f"{name}.yaml")
    filled = {"namespace": NAMESPACE, "uid": UID, "generation": 1, "resourceVersion": "1"}
    raw["metadata"] = merge(filled | raw["metadata"], metadata or {})
    raw["spec"] = merge(raw["spec"], spec or {})
    if status is not None:
        raw["status"] = dump(status) if isinstance(status, FinetuneJobStatus) else status
    return raw


def make_job(name: str = "cpu_ddp", **parts: Any) -> FinetuneJob:
    """The same, as the model."""
    return FinetuneJob.model_validate(raw_job(name, **parts))


def make_condition(type_: ConditionType, status: str = "True", reason: str = "Because") -> Condition:
    return Condition(type=type_, status=status, reason=reason, last_transition_time=NOW, observed_generation=1)


def begun(phase: Phase = Phase.PENDING, *, submitted: bool = False, **changes: Any) -> FinetuneJobStatus:
    """The stored status of a job of `cpu_ddp` once its first attempt is decided; later, as told."""
    types = [ConditionType.VALIDATED] + [ConditionType.SUBMITTED] * submitted
    return FinetuneJobStatus(
        observed_generation=1,
        phase=phase,
        reason="Accepted",
        message="cluster demo-1f0c3-1 will be made",
        conditions=tuple(make_condition(type_) for type_ in types),
        attempt=1,
        ray=RayStatus(cluster="demo-1f0c3-1", submission_id=f"{UID}-a1", workers_desired=2, workers="0/2"),
        output=OutputStatus(persistent_volume_claim="demo-1f0c3-output", path=f"demo-{UID}"),
    ).model_copy(update=changes)


def make_cluster(**changes: Any) -> Cluster:
    """A RayCluster of the job, all ready."""
    values = {
        "name": "demo-1f0c3-1",
        "uid": CLUSTER_UID,
        "owner_uid": UID,
        "deleting": False,
        "suspended": False,
        "head_ready": True,
        "head_lost": False,
        "head_ip": "10.88.0.12",
        "key_id": KEYS.current_id,
        "workers_ready": 2,
        "workers_desired": 2,
        "message": "",
    }
    return Cluster(**(values | changes))


def make_pod(name: str = "demo-1f0c3-1-workers-worker-a", reason: Reason | None = None, message: str = "", **changes: Any) -> Pod:
    """A pod that is not ready; with a reason, one that has a problem."""
    problem = Problem(reason, message) if reason else None
    return Pod(**({"name": name, "is_head": False, "ready": False, "problem": problem} | changes))


def raw_progress(**changes: Any) -> Raw:
    """A progress file as the trainer writes it, half-way."""
    values = {
        "attempt": 1,
        "state": "training",
        "step": 10,
        "totalSteps": 20,
        "epoch": 0.5,
        "percent": 50,
        "etaSeconds": 8,
        "loss": 2.345678,
        "learningRate": 0.0005,
        "tokensPerSecond": 123.4,
        "lastReportTime": "2026-01-02T03:04:05Z",
        "world": {"size": 2, "hosts": ["pod-a", "pod-b"], "devices": ["cpu", "cpu"], "backend": "gloo"},
    }
    return values | changes


def finished_progress(**changes: Any) -> Raw:
    """The last report of a run that succeeded."""
    output = {
        "format": "peft-adapter",
        "path": f"/output/demo-{UID}",
        "files": 3,
        "sizeBytes": 1234,
        "manifestSha256": "ab" * 32,
    }
    result = {"trainLoss": 1.5, "firstLoss": 3.0, "evalLoss": 1.75, "perplexity": 5.75}
    done = {"state": "finished", "step": 20, "percent": 100, "etaSeconds": 0, "output": output, "result": result}
    return raw_progress(**(done | changes))


def make_progress(**changes: Any) -> Progress:
    return Progress.model_validate(raw_progress(**changes))


def make_observed(state: Any = "Unknown", *, ray_message: str = "", ended: datetime | None = None, **parts: Any) -> Observed:
    """A ready cluster and what Ray says; parts as told."""
    return Observed(**({"cluster": make_cluster(), "ray_job": RayJob(state, ray_message, ended)} | parts))
