"""How long the command line takes, against the cluster of KUBECONFIG, or else a fake one: `python -m tests.benchmarks.cli_times`.

It writes the medians of ten runs to docs/benchmarks/cli_times.json, beside that of an empty Python: on a busy machine the ratio
tells more than the milliseconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from tests.support.builders import raw_job
from tests.support.fake_kube import FakeKube
from tests.support.shell import Cluster, login

RUNS = 10
GOALS = {"finetune --help": 0.3, "finetune list": 0.8, "finetune status demo": 0.8}
"""Seconds, on idle cores."""
TOOL = [sys.executable, "-m", "finetune_client.cli"]
RESULT = Path(__file__).parents[2] / "docs" / "benchmarks" / "cli_times.json"


def seconds(words: Sequence[str], kubeconfig: Path) -> float:
    """The median of some runs, after one that warms the caches."""
    times = []
    for _ in range(RUNS + 1):
        begun = time.perf_counter()
        done = subprocess.run(
            words, capture_output=True, env=os.environ | {"KUBECONFIG": str(kubeconfig)}, check=False, timeout=60
        )
        times.append(time.perf_counter() - begun)
        assert done.returncode == 0, done.stderr.decode()
    return median(times[1:])


def measure(kubeconfig: Path, job: str) -> dict[str, Any]:
    """All commands, in seconds."""
    bare = seconds([sys.executable, "-c", "pass"], kubeconfig)
    found = {"python -c pass": {"seconds": round(bare, 3)}}
    for line, goal in GOALS.items():
        words = [job if word == "demo" else word for word in line.split()[1:]]
        taken = seconds([*TOOL, *words], kubeconfig)
        found[line] = {"seconds": round(taken, 3), "goal": goal, "timesPython": round(taken / bare, 1)}
    return found


async def against_fake(folder: Path) -> dict[str, Any]:
    """The same against an API server on loopback with ten jobs."""
    cluster = Cluster(FakeKube())
    for name in ("demo", *(f"job-{number}" for number in range(9))):
        cluster.kube.put("finetunejobs", raw_job(metadata={"name": name}, status={"phase": "Failed"}))
    async with cluster.serve() as url:
        return await asyncio.to_thread(measure, login(folder, url), "demo")


def main() -> None:
    """Measure, print and write."""
    given = os.environ.get("KUBECONFIG")
    if given:
        listed = subprocess.run(
            [*TOOL, "list", "-o", "name"], capture_output=True, text=True, check=True, timeout=60
        ).stdout.split()
        if not listed:
            sys.exit("there is no FinetuneJob in this namespace: `finetune status` needs one")
        commands = measure(Path(given), listed[0].rpartition("/")[2])
    else:
        with tempfile.TemporaryDirectory() as folder:
            commands = asyncio.run(against_fake(Path(folder)))
    load = round(os.getloadavg()[0], 1)
    result = {"against": "cluster" if given else "fake API server on loopback", "runs": RUNS, "cores": os.cpu_count(),
              "loadAverage": load, "commands": commands}  # fmt: skip
    text = json.dumps(result, indent=2) + "\n"
    sys.stdout.write(text)
    RESULT.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
