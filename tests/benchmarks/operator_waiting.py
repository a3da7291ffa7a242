"""Requests of an operator beside a thousand jobs that wait, and how soon it sees what they wait for.

    python -m tests.benchmarks.operator_waiting claims|configmaps|gpus [SECONDS]

The operator is a process of its own with kopf. Each job waits for a claim or a ConfigMap of its own in one namespace, or for
GPUs that no node has. The requests are counted once all jobs say what they wait for.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from tests.benchmarks.operator_load import write_part
from tests.support.builders import NAMESPACE, raw_job
from tests.support.fake_kube import FakeKube, Object
from tests.support.http_server import until
from tests.support.operator_process import started
from tests.support.watched_kube import WatchedKube

WAITING = 1_000
SAMPLES = 5
"""How many of the claims appear, one after the other."""

Seconds = float
GPU = {"device": "GPU", "resources_per_worker": {"CPU": 1, "GPU": 2}, "accelerate_mode": "GPU_DDP"}


def spec(what: str, number: int) -> Object:
    """What a job waits for."""
    if what == "claims":
        return {"output": {"size": None, "persistentVolumeClaim": {"claimName": f"claims-{number}"}}}
    if what == "configmaps":
        return {"dataset": {"configMap": {"name": f"configmaps-{number}"}, "persistentVolumeClaim": None}}
    return {"config": {"Training": GPU}}


def fill(kube: FakeKube, what: str) -> None:
    """Make the jobs, and a node without GPUs."""
    kube.put("nodes", {"metadata": {"name": "n"}, "status": {"allocatable": {"cpu": "8", "gpu.intel.com/i915": "0"}}})
    for number in range(WAITING):
        metadata = {"name": f"job-{number}", "uid": f"{number:08x}-5d1b-4c7e-9a35-2b6f8d9e0c11"}
        kube.put("finetunejobs", raw_job(metadata=metadata, spec=spec(what, number)))


def phase(kube: FakeKube, number: int) -> Any:
    return (kube.objects["finetunejobs"][NAMESPACE, f"job-{number}"].get("status") or {}).get("phase")


def kinds(kube: FakeKube, first: int) -> dict[str, int]:
    """How many requests of each sort since the first one."""
    return dict(
        Counter(f"{seen.method} {seen.path.split('/job-')[0].split('/configmaps-')[0]}" for seen in kube.requests[first:])
    )


async def seen_after(kube: FakeKube, what: str, number: int) -> Seconds:
    """From the moment that something is there until its job goes on."""
    kube.put(
        "persistentvolumeclaims" if what == "claims" else what, {"metadata": {"namespace": NAMESPACE, "name": f"{what}-{number}"}}
    )
    began = time.monotonic()
    await until(
        lambda: (kube.objects["finetunejobs"][NAMESPACE, f"job-{number}"]["status"]).get("attempt"), "it goes on", seconds=300
    )
    return round(time.monotonic() - began, 1)


async def main(what: str, seconds: float) -> None:
    server = WatchedKube(FakeKube())
    kube = server.kube
    fill(kube, what)
    async with server.serve() as url:
        with tempfile.TemporaryDirectory() as folder, started(url, Path(folder)) as operator:
            await operator.up()
            operator.stop_asking()
            await until(lambda: all(phase(kube, number) for number in range(WAITING)), "all jobs wait", seconds=200)
            await asyncio.sleep(10)
            first, cpu, began = len(kube.requests), operator.cpu_seconds(), time.monotonic()
            await asyncio.sleep(seconds)
            took = time.monotonic() - began
            found: dict[str, Any] = {
                "waiting": WAITING,
                "seconds": round(took),
                "requestsPerSecond": round((len(kube.requests) - first) / took, 2),
                "cpuPercent": round(100 * (operator.cpu_seconds() - cpu) / took, 2),
                "peakMiB": operator.mebibytes("VmHWM"),
                "requests": kinds(kube, first),
            }
            if what == "claims":
                found["secondsUntilSeen"] = [await seen_after(kube, what, number * 100) for number in range(SAMPLES)]
    write_part(f"waitingFor{what.title()}", found)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 120.0))
