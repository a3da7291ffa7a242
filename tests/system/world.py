"""A whole operator on loopback: the real reconciler, queue, cache and clients against the fake API server and Ray.

The watch is the servers' own: every change is handed to kopf's handlers, as kopf would. Tests play KubeRay and Ray.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from types import SimpleNamespace
from typing import Any

from kubernetes.aio import client
from tests.support.builders import DATA, KEYS, NAMESPACE, SETTINGS, load_yaml, merge, raw_job
from tests.support.fake_kube import FakeKube, Gate
from tests.support.fake_ray import FakeRay, Head
from tests.support.http_server import a_moment, running

from finetune_operator import handlers
from finetune_operator.clients.bounded import bounded_session
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import KubeClient
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.constants import JOB_LABEL
from finetune_operator.desired.secrets import KeyRing
from finetune_operator.queue import WorkQueue
from finetune_operator.reconciler import Reconciler
from finetune_operator.settings import Settings
from finetune_operator.view import View

Object = dict[str, Any]
JOB: Key = (NAMESPACE, "demo")
CLUSTER: Key = (NAMESPACE, "demo-1f0c3-1")
READY = load_yaml(DATA / "kuberay" / "ready.yaml")["status"]
WORKER = load_yaml(DATA / "kuberay" / "worker_pod.yaml")
NUDGE_SECONDS = 0.02
"""Pause between two nudges: a look at all jobs costs more than to see whether a condition holds."""


class Operator:
    """One process of the operator: what it knows dies with it."""

    def __init__(self, kube_url: str, ray_url: str, settings: Settings, keys: KeyRing, *, watching: bool = True) -> None:
        self.kube = KubeClient(client.ApiClient(client.Configuration(host=kube_url)))
        self.session = bounded_session()
        self.cache = Cache()
        self.watching = watching
        self.events: asyncio.Queue[tuple[str, str, Object]] = asyncio.Queue()

        def dashboard(namespace: str, cluster: str, token: str) -> Dashboard:
            return Dashboard(f"{ray_url}/{namespace}/{cluster}", token)

        self.ahead = timedelta()
        """How far the operator's clock is ahead: what takes minutes is seen at once."""
        clock = lambda: datetime.now(UTC) + self.ahead  # noqa: E731
        self.reconciler = Reconciler(self.kube, RayClient(self.session), self.cache, keys, settings, dashboard, clock)
        self.queue: WorkQueue[Key] = WorkQueue(self.reconciler.reconcile)
        self.view = View(self.kube, self.cache, self.queue, settings.namespaces)
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, working: bool, workers: int) -> None:
        await self.view.fill()
        if not working:
            return
        self._tasks = [asyncio.create_task(self.queue.run_worker()) for _ in range(workers)]
        self._tasks.append(asyncio.create_task(self._watch()))
        self._tasks.append(asyncio.create_task(self.reconciler.dashboards.run(self.queue.add)))
        self._tasks.append(asyncio.create_task(self.reconciler.look_out(self.queue.add)))
        self.nudge()

    def nudge(self) -> None:
        """What the resync does: have every job looked at."""
        self.view.add_all()

    def alive(self) -> bool:
        return not any(task.done() for task in self._tasks)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.session.close()
        await self.kube.close()

    async def _watch(self) -> None:
        while True:
            type_, plural, raw = await self.events.get()
            if not self.watching:
                continue
            if plural in {"finetunejobs", "rayclusters", "pods"}:
                resource: Any = SimpleNamespace(plural=plural)
                await handlers.on_event(type_, raw, resource, handlers.Memo(tell=self.view.event))  # type: ignore[arg-type]


class World:
    """Servers, the operator that runs now, and what the tests do in place of everybody else."""

    def __init__(self) -> None:
        self.gate = Gate()
        self.kube = FakeKube(self.gate)
        self.ray = FakeRay(self.gate, self._token)
        self.settings = SETTINGS
        self.keys = KEYS
        """Of the operator that is started next."""
        self.operator: Operator | None = None
        self.others: list[Operator] = []
        """Operators that live beside it, as while one replaces another."""
        self.restarts = 0
        self._urls = ("", "")
        self._labelled: set[tuple[str, str, str]] = set()
        self.kube.listeners.append(self._hand_over)

    @classmethod
    @asynccontextmanager
    async def open(cls) -> AsyncIterator[World]:
        """A world without an operator yet."""
        world = cls()
        async with AsyncExitStack() as stack:
            world._urls = (
                await stack.enter_async_context(running(world.kube)),
                await stack.enter_async_context(running(world.ray)),
            )
            try:
                yield world
            finally:
                await world.stop_operator()

    def _hand_over(self, type_: str, plural: str, raw: Object) -> None:
        """Hand an event to the operator as a watch does: of clusters and pods by a label; its removal is a deletion."""
        metadata = raw["metadata"]
        identity = plural, metadata.get("namespace", ""), metadata["name"]
        if plural in {"rayclusters", "pods"} and JOB_LABEL not in (metadata.get("labels") or {}):
            if identity not in self._labelled:
                return
            self._labelled.discard(identity)
            type_ = "DELETED"
        else:
            self._labelled.add(identity)
        for operator in self._operators():
            operator.events.put_nowait((type_, plural, raw))

    async def start_operator(self, *, watching: bool = True, working: bool = True, workers: int = 2) -> Operator:
        self.operator = Operator(*self._urls, self.settings, self.keys, watching=watching)
        await self.operator.start(working=working, workers=workers)
        return self.operator

    async def start_another_operator(self) -> None:
        """Have one live beside the first."""
        self.others.append(Operator(*self._urls, self.settings, self.keys))
        await self.others[-1].start(working=True, workers=2)

    async def stop_operator(self) -> None:
        stopped, self.operator, self.others = self._operators(), None, []
        for operator in stopped:
            await operator.stop()

    def _operators(self) -> list[Operator]:
        return [operator for operator in (self.operator, *self.others) if operator is not None]

    async def until(self, condition: Callable[[], Any], what: str, *, seconds: float = 30.0, nudge: bool = True) -> None:
        """Poll until a condition holds. An operator that was cut off is replaced by a new one, as its pod would be.

        Without nudges, what happens is the operator's own doing: its watch and its timers.
        """
        deadline, next_nudge = monotonic() + seconds, 0.0
        while not condition():
            assert monotonic() < deadline, f"not within {seconds} s: {what}; status {self.status()}"
            if self.gate.closed:
                await self.stop_operator()
                self.gate.reopen()
                self.restarts += 1
                await self.start_operator()
            assert all(operator.alive() for operator in self._operators())
            if nudge and monotonic() >= next_nudge:
                next_nudge = monotonic() + NUDGE_SECONDS
                for operator in self._operators():
                    operator.nudge()
            await a_moment()

    async def rounds(self, count: int) -> None:
        """Let the operator look at its jobs some more times, and read from the API at least as often."""
        for _ in range(count):
            before = len(self.kube.requests) + len(self.ray.requests)
            deadline = monotonic() + 0.05
            await self.until(
                lambda b=before, d=deadline: len(self.kube.requests) + len(self.ray.requests) > b or monotonic() > d, ""
            )

    async def wait(self, seconds: float) -> None:
        """Let time go by without a nudge: what happens now is the operator's own doing."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await asyncio.Event().wait()

    def add_job(self, name: str = "cpu_ddp", **parts: Any) -> Key:
        raw = self.kube.put("finetunejobs", raw_job(name, **parts))
        return raw["metadata"]["namespace"], raw["metadata"]["name"]

    def status(self, key: Key = JOB) -> Object:
        return (self.kube.get("finetunejobs", key) or {}).get("status") or {}

    def change_spec(self, key: Key = JOB, **spec: Any) -> None:
        """The user changes a job."""
        job = self.kube.objects["finetunejobs"][key]
        self.kube.put("finetunejobs", job | {"spec": merge(job["spec"], spec)})

    def condition(self, type_: str, key: Key = JOB) -> Object:
        return next((item for item in self.status(key).get("conditions", ()) if item["type"] == type_), {})

    def phase(self, key: Key = JOB) -> tuple[str, str]:
        status = self.status(key)
        return status.get("phase", ""), status.get("reason", "")

    def submitted(self) -> bool:
        return self.condition("Submitted").get("status") == "True"

    def made(self, plural: str) -> int:
        """Creates of a kind that took effect."""
        return sum(kind == plural for kind, _obj in self.kube.created)

    @property
    def head(self) -> Head:
        """That of the current attempt."""
        return self.ray.heads[self.cluster[1]]

    @property
    def cluster(self) -> Key:
        """The RayCluster of the current attempt."""
        return NAMESPACE, (self.status().get("ray") or {}).get("cluster", CLUSTER[1])

    def ray_says(self, status: str, message: str = "", progress: Object | None = None) -> None:
        """The driver of the current attempt goes on."""
        job = list(self.head.jobs.values())[-1]
        job |= {"status": status, "message": message}
        if progress is not None:
            self.head.progress = progress

    def kuberay_says(self, status: Object = READY) -> None:
        """KubeRay writes the status of the current attempt's cluster."""
        self.kube.put("rayclusters", self.kube.objects["rayclusters"][self.cluster] | {"status": status})

    def _token(self, namespace: str, cluster: str) -> str | None:
        """What a head takes: the token in the Secret that its cluster names, as Ray does."""
        raw = self.kube.get("rayclusters", (namespace, cluster))
        secret = raw and self.kube.get("secrets", (namespace, raw["spec"]["authOptions"]["secretName"]))
        return base64.b64decode(secret["data"]["auth_token"]).decode() if secret else "nobody-knows"


async def bring_up(world: World) -> None:
    """From the job to a driver that Ray has, and the operator knows it."""
    await world.until(lambda: world.phase()[0] == "Provisioning", "the cluster is provisioned")
    world.kuberay_says()
    await world.until(world.submitted, "the driver is submitted")


async def run_training(world: World, progress: Object) -> None:
    """To a run that makes steps."""
    await bring_up(world)
    world.ray_says("RUNNING", progress=progress)
    await world.until(lambda: world.phase() == ("Running", "TrainingRunning"), "training runs")


async def run_to_the_end(world: World, progress: Object, finished: Object) -> None:
    """To the end, and until nothing is left but the result."""
    await run_training(world, progress)
    world.ray_says("SUCCEEDED", progress=finished)
    await world.until(lambda: world.phase()[0] == "Succeeded", "the job succeeds")
    await world.until(lambda: not world.kube.objects["rayclusters"], "the cluster is deleted")
