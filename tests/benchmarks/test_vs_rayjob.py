"""From ``kubectl apply`` to the end of a job that trains for one step: a FinetuneJob beside KubeRay's RayJob.

Both run the same trainer with the same YAML in pods of the same size, in turn, on one cluster. The RayJob is in its
fastest mode, SidecarMode, and spared what the FinetuneJob has: token authentication and Pod Security.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.benchmarks.commit import commit
from tests.e2e.conftest import Release
from tests.support import cluster
from tests.support.jobs import finetune_job
from tests.support.kubectl import Kubectl, Object, wait_until

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.ray_cluster import build_ray_cluster
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.desired.storage import build_output_claim
from finetune_operator.desired.submission import build_entrypoint
from finetune_operator.settings import Settings

ROUNDS = int(os.environ.get("BENCHMARK_ROUNDS", "5"))
FILE = cluster.ROOT / "docs" / "benchmarks" / "one_step_vs_rayjob.json"


@pytest.fixture(scope="module")
def bench(kubectl: Kubectl, release: Release, model: Path) -> Kubectl:
    """A namespace without Pod Security, since the RayJob's own submitter container would be refused."""
    namespace = cluster.new_namespace(kubectl, "finetune-bench")
    kubectl.run("label", "namespace", namespace.namespace, "pod-security.kubernetes.io/enforce-")
    rows = (cluster.ROOT / "examples" / "data" / "sample_finetune_data.jsonl").read_text(encoding="utf-8")
    cluster.fill(namespace, release.trainer_image, model, {"rows.jsonl": rows})
    return namespace


def one_step(name: str) -> Object:
    return finetune_job(name, Training__max_train_steps=1, Dataset__validation_split_percentage=0)


def ray_job(name: str, image: str, namespace: str) -> list[Object]:
    """What a user of RayJob would write for the same work."""
    manifest = one_step(name)
    manifest["metadata"] |= {"namespace": namespace, "uid": "00000000-0000-4000-8000-000000000000"}
    job = FinetuneJob.model_validate(manifest)
    settings = Settings(trainer_image=image)
    spec = build_ray_cluster(job, 1, settings, KeyRing((b"-" * 32,)))["spec"]
    del spec["authOptions"]
    claim = build_output_claim(job)
    config = build_config_map(job)
    assert claim is not None
    for child in (claim, config):
        child["metadata"] = {"name": child["metadata"]["name"]}
    entrypoint = build_entrypoint(job, 1)
    body: dict[str, Any] = {
        "submissionMode": "SidecarMode",
        "entrypoint": entrypoint,
        "shutdownAfterJobFinishes": True,
        "backoffLimit": 0,
        "rayClusterSpec": spec,
    }
    return [claim, config, {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": name}, "spec": body}]


def test_one_step(bench: Kubectl, release: Release) -> None:
    seconds: dict[str, list[float]] = {"FinetuneJob": [], "RayJob": []}
    for number in range(ROUNDS + 1):
        first = run_finetune_job(bench, f"ours-{number}")
        second = run_ray_job(bench, f"theirs-{number}", release.trainer_image)
        if number > 0:  # the first round warms up the node's file cache
            seconds["FinetuneJob"].append(first)
            seconds["RayJob"].append(second)
    write(seconds)
    assert statistics.median(seconds["FinetuneJob"]) <= statistics.median(seconds["RayJob"])


def run_finetune_job(bench: Kubectl, name: str) -> float:
    began = time.monotonic()
    bench.apply(one_step(name))

    def ended() -> Object | None:
        status: Object = (bench.get("finetunejob", name) or {}).get("status", {})
        return status if status.get("phase") in {"Succeeded", "Failed"} else None

    status = wait_until(f"{name} to end", ended, 240, every=0.2)
    took = time.monotonic() - began
    assert status["phase"] == "Succeeded", status["message"]
    clear(bench, "finetunejob", name)
    bench.run("delete", "pvc", status["output"]["persistentVolumeClaim"], "--wait=false")
    return took


def run_ray_job(bench: Kubectl, name: str, image: str) -> float:
    began = time.monotonic()
    objects = ray_job(name, image, bench.namespace)
    bench.apply(*objects)

    def ended() -> Object | None:
        status: Object = (bench.get("rayjob", name) or {}).get("status", {})
        return status if status.get("jobDeploymentStatus") in {"Complete", "Failed"} else None

    status = wait_until(f"{name} to end", ended, 240, every=0.2)
    took = time.monotonic() - began
    assert status["jobDeploymentStatus"] == "Complete", status
    clear(bench, "rayjob", name)
    bench.run("delete", "pvc", objects[0]["metadata"]["name"], "--wait=false")
    return took


def clear(bench: Kubectl, kind: str, name: str) -> None:
    """Nothing of one run may slow the next."""
    bench.run("delete", kind, name, "--timeout=60s")
    wait_until("the node to be idle", lambda: not bench.list("pods"), 90)


def write(seconds: dict[str, list[float]]) -> None:
    result = {
        "what": "seconds from `kubectl apply` to the end of a job that trains for one step on two CPU workers",
        "command": "make benchmark",
        "commit": commit(),
        "time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "machine": {"cores": os.cpu_count(), "architecture": platform.machine(), "kuberay": "1.6.1", "ray": "2.60.0"},
        "seconds": {name: [round(value, 2) for value in values] for name, values in seconds.items()},
        "median": {name: round(statistics.median(values), 2) for name, values in seconds.items()},
        "spread": {name: [round(min(values), 2), round(max(values), 2)] for name, values in seconds.items()},
        "ratio of medians": round(statistics.median(seconds["FinetuneJob"]) / statistics.median(seconds["RayJob"]), 3),
    }
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
