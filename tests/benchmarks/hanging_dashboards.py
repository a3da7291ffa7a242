"""How long a new job waits for its first status beside 200 jobs of others whose dashboards never answer.

    python -m tests.benchmarks.hanging_dashboards

The operator is the real one, the API server and Ray are the fakes of the system tests, and all share one process: the seconds
are an upper bound. A dashboard that hangs accepts the connection, as behind a NetworkPolicy that drops packets.
"""

from __future__ import annotations

import asyncio
import json
from time import monotonic
from typing import Any

from tests.benchmarks.operator_load import percentile, write_part
from tests.support.builders import raw_job
from tests.support.http_server import a_moment
from tests.system.many import add, add_cluster, uid
from tests.system.world import World

from finetune_operator.api.v1alpha1 import Phase

HANGING, NEW, WORKERS = 200, 100, 16
PAUSE = 0.1
"""Seconds between two new jobs: they come while the dashboards hang, not only before."""


async def first_statuses(world: World) -> list[float]:
    """Seconds from the creation of each new job to its first status."""
    made: dict[str, float] = {}
    waited: dict[str, float] = {}

    def on_event(_type: str, plural: str, raw: dict[str, Any]) -> None:
        name = raw["metadata"]["name"]
        if plural == "finetunejobs" and name in made and raw.get("status"):
            waited.setdefault(name, monotonic() - made[name])

    world.kube.listeners.append(on_event)
    for number in range(NEW):
        name = f"new-{number}"
        made[name] = monotonic()
        world.kube.put("finetunejobs", raw_job(metadata={"name": name, "uid": uid(1000 + number)}))
        while monotonic() < made[name] + PAUSE:
            await a_moment()
    while len(waited) < NEW:
        await a_moment()
    return list(waited.values())


async def measure(namespaces: int) -> dict[str, float]:
    """With the hanging dashboards in so many namespaces of others."""
    async with World.open() as world:
        for number in range(HANGING):
            namespace = f"other-{number % namespaces}"
            cluster = add(world, number, namespace, phase=Phase.RUNNING)
            add_cluster(world, number, cluster, namespace)
            world.ray.heads[cluster].silent = True
        await world.start_operator(workers=WORKERS)
        while not world.ray.requests:
            await a_moment()
        waited = await first_statuses(world)
        return {"p50Seconds": round(percentile(waited, 50), 3), "p99Seconds": round(percentile(waited, 99), 3)}


def main() -> None:
    """Measure, print and keep the result."""
    found = {f"in{count}Namespaces": asyncio.run(measure(count)) for count in (1, 20)}
    part = {"hangingDashboards": HANGING, "newJobs": NEW, "reconcileWorkers": WORKERS, "secondsToFirstStatus": found}
    write_part("firstStatusBesideHangingDashboards", part)
    print(json.dumps(part, indent=1))


if __name__ == "__main__":
    main()
