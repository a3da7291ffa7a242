"""Look for the objects that a job needs before anything is created for it.

Secrets are not looked for: the operator may not read them, and a pod reports a missing one. Nodes and PriorityClasses
belong to the whole cluster, so only an install that watches all namespaces may see them.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import FinetuneJob, FinetuneJobStatus, Reason, ResumeStatus
from finetune_operator.clients.kube import CONFIG_MAPS, FINETUNE_JOBS, PRIORITY_CLASSES, Kind
from finetune_operator.decide.resumption import MAX_LINKS, resume_point, too_many_links
from finetune_operator.desired.accelerators import gpu_resources
from finetune_operator.desired.storage import required_claims, required_config_maps
from finetune_operator.errors import KubeError
from finetune_operator.observed import LOOK_AGAIN_SECONDS, Observed, missing_object
from finetune_operator.settings import Settings
from finetune_operator.shared_reads import SharedReads

logger = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 60.0
"""Longest pause between two looks for a job that waits; each is twice the one before, as long as the same is missing."""

LOOK_OUT_SECONDS = 4.0
"""How often the things that jobs wait for are looked at for all jobs: with `SHARED_SECONDS`, what appears is seen within
ten seconds."""

FORGOTTEN_SECONDS = 5 * LONGEST_PAUSE_SECONDS
"""A job that was not looked at for so long does not wait any more: it was deleted, or cancelled."""

Key = tuple[str, str]
Get = Callable[[Kind, str, str], Awaitable[dict[str, Any] | None]]


@dataclass(frozen=True)
class Need:
    """Something that has to exist."""

    kind: str
    name: str
    namespace: str | None = None
    key: str = ""
    """The key of the spec that names it."""
    count: int = 0
    """GPUs of that name that one node has to offer."""


@dataclass
class _Waiting:
    needs: frozenset[Need]
    """What was missing at the last look."""
    pause: float
    looked: float


class Preflight:
    """Looks for the objects that jobs name."""

    def __init__(self, reads: SharedReads, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._reads = reads
        self._settings = settings
        self._clock = clock
        self._waiting: dict[Key, _Waiting] = {}

    async def observe(self, job: FinetuneJob) -> Observed:
        """What is missing, and the source from which the job starts.

        Raises:
            KubeUnavailableError: the API server did not answer.
        """
        found, waited_for = await self._resume_point(job, self._reads.get)
        resume = None if isinstance(found, Problem) else found
        missing = await self._missing(job if resume is None else job.model_copy(update={"status": _with(job, resume)}))
        if isinstance(found, Problem):
            missing = {Need("FinetuneJob", waited_for, job.metadata.namespace): found} | missing
        if not missing and resume is not None and job.status.resume is None:
            # what begins now is stored and never looked at again: the answer must not be one that was reused
            found, waited_for = await self._resume_point(job, self._reads.kube.get)
            if found != resume:
                changed = Problem(Reason.WAITING_FOR_JOB, f"FinetuneJob {waited_for!r} (spec.resumeFrom) has just changed")
                missing = {Need("FinetuneJob", waited_for, job.metadata.namespace): changed}
        if not missing:
            self._waiting.pop(job.key, None)
            return Observed(resume=resume)
        pause = self._pause(job.key, frozenset(missing))
        return Observed(missing=tuple(missing.values()), resume=resume, look_again=pause)

    async def look_out(self, wake: Callable[[Key], None]) -> None:
        """Wake jobs as soon as something that they wait for is there, for ever."""
        while True:
            await asyncio.sleep(LOOK_OUT_SECONDS)
            now = self._clock()
            self._waiting = {key: one for key, one in self._waiting.items() if now - one.looked < FORGOTTEN_SECONDS}
            met: dict[Need, bool] = {}
            for key, waiting in list(self._waiting.items()):
                for need in waiting.needs - met.keys():
                    met[need] = await self._is_met(need)
                    await asyncio.sleep(0)
                if any(met[need] for need in waiting.needs):
                    wake(key)

    async def _is_met(self, need: Need) -> bool:
        try:
            return await self._look(need) is None
        except KubeError as error:
            logger.info("cannot look for %s %r: %s", need.kind, need.name, error)
            return False

    def _pause(self, key: Key, needs: frozenset[Need]) -> float:
        """How long a job waits until the next look, if nothing wakes it."""
        before = self._waiting.get(key)
        pause = LOOK_AGAIN_SECONDS
        if before is not None and before.needs == needs:
            pause = min(2 * before.pause, LONGEST_PAUSE_SECONDS)
        self._waiting[key] = _Waiting(needs, pause, self._clock())
        return pause * random.uniform(0.75, 1.25)  # noqa: S311 - jitter

    async def _resume_point(self, job: FinetuneJob, get: Get) -> tuple[ResumeStatus | Problem | None, str]:
        """Resolve spec.resumeFrom; with the name of the last job that was looked at. A name that occurs twice belongs to a
        job that was deleted and created again.
        """
        found: ResumeStatus | Problem | str | None = job.status.resume or job.spec.resume_from
        name, namespace, seen = job.metadata.name, job.metadata.namespace, {job.metadata.name}
        while isinstance(found, str):
            if len(seen) > MAX_LINKS:
                return too_many_links(name), name
            name = found
            raw = await get(FINETUNE_JOBS, namespace, name)
            found = resume_point(raw) if raw else missing_object("FinetuneJob", "resumeFrom", name, namespace)
            if isinstance(found, str) and found in seen:
                found = ResumeStatus(job=name, uid=raw["metadata"]["uid"] if raw else "")
            seen.add(name)
        return found, name

    async def _missing(self, job: FinetuneJob) -> dict[Need, Problem]:
        """All missing objects, in the order of the spec."""
        needs = self._needs(job)
        found = await asyncio.gather(*(self._look(need) for need in needs))
        return {need: missing for need, missing in zip(needs, found, strict=True) if missing is not None}

    def _needs(self, job: FinetuneJob) -> list[Need]:
        namespace = job.metadata.namespace
        needs = [Need("PersistentVolumeClaim", name, namespace, key) for key, name in required_claims(job).items()]
        needs += [Need("ConfigMap", name, namespace, key) for key, name in required_config_maps(job).items()]
        if self._settings.namespaces:
            return needs
        needs += [Need("PriorityClass", name, key=key) for key, name in _priority_classes(job)]
        if self._settings.check_nodes:
            needs += [Need("Node", resource, count=int(count)) for resource, count in gpu_resources(job).items()]
        return needs

    async def _look(self, need: Need) -> Problem | None:
        match need.kind:
            case "Node":
                return await self._look_for_node(need)
            case "PersistentVolumeClaim":
                there = await self._reads.claim_exists(need.namespace or "", need.name)
            case "FinetuneJob":
                raw = await self._reads.get(FINETUNE_JOBS, need.namespace or "", need.name)
                there = raw is not None and not isinstance(resume_point(raw), Problem)
            case _:
                kind = CONFIG_MAPS if need.kind == "ConfigMap" else PRIORITY_CLASSES
                there = await self._reads.get(kind, need.namespace or "", need.name) is not None
        return None if there else missing_object(need.kind, need.key, need.name, need.namespace)

    async def _look_for_node(self, need: Need) -> Problem | None:
        """Find a node with as many GPUs as a worker requests; whether they are free is decided by the scheduler."""
        offers = [_quantity(node, need.name) for node in await self._reads.allocatable()]
        if not offers or max(offers) >= need.count:
            return None
        most = f"the most that one has is {max(offers)}" if max(offers) else "none has any"
        where = "(spec.config.Training.resources_per_worker.GPU)"
        return Problem(Reason.NO_SUCH_RESOURCE, f"no node offers {need.name}: {need.count} for a worker {where}; {most}")


def _with(job: FinetuneJob, resume: ResumeStatus) -> FinetuneJobStatus:
    return job.status.model_copy(update={"resume": resume})


def _priority_classes(job: FinetuneJob) -> list[tuple[str, str]]:
    options = {"head": job.spec.head, "workers": job.spec.workers}
    names = {key: option.priority_class_name for key, option in options.items() if option}
    return [(f"{key}.priorityClassName", name) for key, name in names.items() if name]


def _quantity(allocatable: dict[str, str], resource: str) -> int:
    quantity = str(allocatable.get(resource, "0"))
    return int(quantity) if quantity.isdigit() else 0
