"""Memory, loop and CPU time of the operator beside many jobs that have ended, as a process of its own with kopf.

    python -m tests.benchmarks.operator_size active|idle [SECONDS]

The API server and the dashboards are this process. ``active``: 1,000 jobs run, and their dashboards are polled. ``idle``:
they are suspended, so nothing is left to be done. The time counts from the start; with more than 300 seconds it holds the
periodic LIST of everything, too.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.benchmarks.operator_load import write_part
from tests.support.builders import (
    DATA,
    NAMESPACE,
    NOW,
    begun,
    finished_progress,
    load_yaml,
    make_condition,
    raw_job,
    raw_progress,
)
from tests.support.fake_kube import FakeKube, Object
from tests.support.http_server import Seen
from tests.support.operator_process import OperatorProcess, started
from tests.support.watched_kube import WatchedKube

from finetune_operator.api.v1alpha1 import AttemptStatus, ConditionType, FinetuneJobStatus, Phase, RayStatus
from finetune_operator.status import progress_status, result_status
from finetune_trainer.tracking.progress import Progress

FINISHED, OTHERS = 10_000, 1_000
STEP_SECONDS = 10.0
READY = load_yaml(DATA / "kuberay" / "ready.yaml")["status"]


def uid(number: int) -> str:
    return f"{number:08x}-5d1b-4c7e-9a35-2b6f8d9e0c11"


def status(number: int, phase: Phase) -> FinetuneJobStatus:
    """What a job of a life of two attempts has: all conditions, a history, and what the trainer reported."""
    id_ = uid(number)
    cluster = f"job-{number}-{id_[:5]}-1"
    ray = RayStatus(cluster=cluster, submission_id=f"{id_}-a1", workers_desired=2, workers_ready=2, workers="2/2", start_time=NOW)
    report = Progress.model_validate(finished_progress() if phase is Phase.SUCCEEDED else raw_progress())
    over = AttemptStatus(
        attempt=1, cluster=cluster, submission_id=ray.submission_id, end_time=NOW, reason="HeadLost", last_step=10
    )
    changes: dict[str, Any] = {
        "progress": progress_status(report, None, NOW),
        "message": "no new step: " + "a sentence of the trainer about it. " * 10,
        "conditions": tuple(make_condition(type_) for type_ in ConditionType if type_ is not ConditionType.FAILED),
        "start_time": NOW,
        "ray": None if phase is Phase.SUSPENDED else ray,
    }
    if phase is Phase.SUCCEEDED:
        changes |= {"completion_time": NOW, "attempt_history": (over,) * 2, "result": result_status(report.result)}  # type: ignore[arg-type]
    return begun(phase, submitted=True, **changes)


def fields(value: Any) -> Object:
    """What managedFields says of an object."""
    return {f"f:{key}": fields(part) for key, part in value.items()} if isinstance(value, dict) else {}


def job(number: int, phase: Phase) -> Object:
    """A job as an API server holds it that kubectl and an operator have written it to."""
    spec = {"ttlSecondsAfterFinished": None, "suspend": True if phase is Phase.SUSPENDED else None}
    raw = raw_job(metadata={"name": f"job-{number}", "uid": uid(number)}, spec=spec, status=status(number, phase))
    applied = json.dumps({"metadata": {"name": f"job-{number}"}, "spec": raw["spec"]})
    managed = [{"manager": name, "fieldsV1": fields({name: raw[name]})} for name in ("spec", "status")]
    raw["metadata"] |= {
        "annotations": {"kubectl.kubernetes.io/last-applied-configuration": applied},
        "managedFields": managed,
        "resourceVersion": str(10_000 + number),
    }
    return raw


def cluster(number: int) -> Object:
    name = f"job-{number}"
    owner = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "name": name, "uid": uid(number), "controller": True}
    metadata = {
        "name": f"{name}-{uid(number)[:5]}-1",
        "namespace": NAMESPACE,
        "uid": f"c-{uid(number)}",
        "resourceVersion": str(30_000 + number),
        "labels": {"llmonray.dev/finetunejob": name},
        "ownerReferences": [owner],
    }
    return {"metadata": metadata, "spec": {}, "status": READY}


def fill(kube: FakeKube, phase: Phase) -> int:
    """Put all objects there; the bytes of a job that has ended."""
    for number in range(FINISHED + OTHERS):
        ended = number < FINISHED
        kube.objects["finetunejobs"][NAMESPACE, f"job-{number}"] = job(number, Phase.SUCCEEDED if ended else phase)
        if not ended and phase is Phase.RUNNING:
            made = cluster(number)
            kube.objects["rayclusters"][NAMESPACE, made["metadata"]["name"]] = made
    kube.version = 100_000
    return len(json.dumps(kube.objects["finetunejobs"][NAMESPACE, "job-0"]))


async def dashboard(seen: Seen) -> web.Response:
    """A long run in the middle of its way."""
    if "/logs/file" in seen.path:
        return web.Response(text="1" + json.dumps(raw_progress(etaSeconds=100_000)) + "\n")
    return web.json_response({"status": "RUNNING", "message": ""})


async def ready(operator: OperatorProcess) -> float:
    """Seconds until the first LIST is through."""
    began = time.monotonic()
    async with aiohttp.ClientSession() as session:
        while True:
            async with session.get(operator.probe_url + "/readyz") as answer:
                if answer.status == 200:
                    return time.monotonic() - began
            await asyncio.sleep(0.05)


async def watch(operator: OperatorProcess, seconds: float, *, asking: bool) -> dict[str, Any]:
    """Look at the process for some time; the loop's answers cost CPU time of their own."""
    await operator.up()
    until_ready = await ready(operator)
    deadline, blocks = time.monotonic() + seconds, []
    if not asking:
        operator.stop_asking()
        await asyncio.sleep(20)  # what a start brings is over
    cpu, since = operator.cpu_seconds(), time.monotonic()
    while time.monotonic() < deadline:
        await asyncio.sleep(STEP_SECONDS)
        if asking:
            blocks.append(await operator.longest_block())
    share = (operator.cpu_seconds() - cpu) / (time.monotonic() - since)
    found: dict[str, Any] = {
        "secondsUntilReady": round(until_ready, 1),
        "peakMiB": operator.mebibytes("VmHWM"),
        "residentMiB": operator.mebibytes("VmRSS"),
        "cpuPercent": round(100 * share, 2),
        "seconds": round(seconds),
    }
    if blocks:
        found["longestBlockMilliseconds"] = round(1000 * max(block.seconds for block in blocks))
        found["longestBlockCPUMilliseconds"] = round(1000 * max(block.cpu_seconds for block in blocks))
    return found


async def main(mode: str, seconds: float) -> None:
    server = WatchedKube(FakeKube(), dashboard)
    size = fill(server.kube, Phase.RUNNING if mode == "active" else Phase.SUSPENDED)
    async with server.serve() as url:
        with tempfile.TemporaryDirectory() as folder, started(url, Path(folder)) as operator:
            found = await watch(operator, seconds, asking=mode == "active")
    jobs = {"finished": FINISHED, "running" if mode == "active" else "suspended": OTHERS, "bytesOfAFinishedJob": size}
    write_part(f"manyJobs{mode.title()}", jobs | found)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else 330.0))
