"""How soon a new operator attends to the jobs that run, beside many that have ended, on a real API server.

    KUBECONFIG=… python -m tests.benchmarks.restart OUTPUT.json [FINISHED [RUNNING]]

The jobs are made with their statuses while no operator runs. Each of those that run is to be cancelled: what the new
operator writes on it tells when it was attended to. The operator is a process of its own, as in its pod.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from kubernetes.aio import client, config
from tests.support.builders import begun
from tests.support.jobs import finetune_job

from finetune_operator.api.v1alpha1 import Phase, RayStatus, dump

NAMESPACE = "finetune-restart"
API = ("llmonray.dev", "v1alpha1", NAMESPACE, "finetunejobs")
MAKERS = 16
"""Jobs that are made at the same time."""


async def make(api: Any, name: str, *, runs: bool) -> None:
    """A job of an earlier operator, with the status that it left."""
    job = await api.create_namespaced_custom_object(*API, finetune_job(name, cancel=runs))
    uid = job["metadata"]["uid"]
    if runs:
        ray = RayStatus(cluster=f"{name}-{uid[:5]}-1", submission_id=f"{uid}-a1", workers_desired=2, workers="2/2")
        status = begun(submitted=True, phase=Phase.RUNNING).model_copy(update={"ray": ray})
    else:
        status = begun(phase=Phase.SUCCEEDED, completion_time=begun().conditions[0].last_transition_time)
    body = {"status": dump(status)}
    await api.patch_namespaced_custom_object_status(*API, name, body, _content_type="application/merge-patch+json")


async def fill(api: Any, finished: int, running: int) -> None:
    """Make all jobs."""
    names = [(f"finished-{number}", False) for number in range(finished)] + [(f"running-{n}", True) for n in range(running)]
    waiting = iter(names)

    async def maker() -> None:
        for name, runs in waiting:
            await make(api, name, runs=runs)

    await asyncio.gather(*(maker() for _ in range(MAKERS)))


async def attended(api: Any, running: int) -> int:
    """How many of those that run were written by the new operator."""
    jobs = [await api.get_namespaced_custom_object(*API, f"running-{number}") for number in range(running)]
    return sum(job["status"]["phase"] != "Running" for job in jobs)


def free_port() -> str:
    """A port of this host that nobody listens on."""
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])


async def measure(api: Any, running: int, work: Path) -> dict[str, float]:
    """Start an operator; seconds until the first, half and all of the running jobs were attended to."""
    (work / "key").write_text("0" * 64 + "\n")
    env = os.environ | {"FINETUNE_TOKEN_KEY_FILE": str(work / "key"), "FINETUNE_DASHBOARD_ROUTE": "proxy",
                        "FINETUNE_PROBE_PORT": free_port(), "FINETUNE_METRICS_PORT": free_port()}  # fmt: skip
    seconds: dict[str, float] = {}
    with (work / "operator.log").open("w") as log:
        began = time.monotonic()
        operator = subprocess.Popen([sys.executable, "-m", "finetune_operator"], env=env, stdout=log, stderr=log)  # noqa: ASYNC220
        try:
            while "all" not in seconds and time.monotonic() - began < 300 and operator.poll() is None:
                count = await attended(api, running)
                for name, least in (("first", 1), ("half", running // 2), ("all", running)):
                    if count >= least:
                        seconds.setdefault(name, round(time.monotonic() - began, 1))
        finally:
            operator.terminate()
            operator.wait(timeout=30)
    if "all" not in seconds:
        print((work / "operator.log").read_text()[-3000:])
    return seconds


async def main(finished: int, running: int) -> dict[str, Any]:
    """Make the jobs, measure, and remove them."""
    await config.load_kube_config()  # type: ignore[no-untyped-call]
    async with client.ApiClient() as connection:
        api, core = client.CustomObjectsApi(connection), client.CoreV1Api(connection)
        await core.create_namespace({"metadata": {"name": NAMESPACE}})
        try:
            began = time.monotonic()
            await fill(api, finished, running)
            print(f"{finished + running} jobs made in {time.monotonic() - began:.0f} s", flush=True)
            with tempfile.TemporaryDirectory() as folder:
                found = await measure(api, running, Path(folder))
            return {"finished": finished, "running": running, "secondsUntilAttended": found}
        finally:
            await core.delete_namespace(NAMESPACE)


if __name__ == "__main__":
    counts = [int(text) for text in sys.argv[2:]]
    result = asyncio.run(main(*(counts + [10_000, 100][len(counts) :])))
    Path(sys.argv[1]).write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))
