"""The pods that fetch for jobs, as they are seen, and how far they say that they are.

Progress is for people: a pod that does not answer, or cannot be reached, is as good as any other. So it is asked beside the
reconciles, a few pods at a time, and a reconcile takes the last answer.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace

from finetune_operator.api.v1alpha1 import FinetuneJob, JobIdentity
from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.ray import RayClient
from finetune_operator.constants import FETCH_PORT, UID_LABEL
from finetune_operator.observed import FetchPod, Observed
from finetune_trainer.fetch.report import FetchProgress

ASKED_AT_ONCE = 8
"""How many pods are asked at the same time; each has five seconds."""


@dataclass
class _Asked:
    pod: str
    """UID of the pod."""
    task: asyncio.Task[FetchProgress | None]
    answer: FetchProgress | None = None


class Fetches:
    """Finds the pod of a job's fetch, and remembers what it has said."""

    def __init__(self, cache: Cache, ray: RayClient) -> None:
        self._cache = cache
        self._ray = ray
        self._asked: dict[Key, _Asked] = {}
        self._few = asyncio.Semaphore(ASKED_AT_ONCE)

    def pod_of(self, job: JobIdentity) -> FetchPod | None:
        """The pod of the current try, if it is there and the job's own."""
        if job.status.fetch is None:
            return None
        for raw in self._cache.of_job("pods", job.key):
            metadata = raw["metadata"]
            owned = any(owner.get("uid") == job.metadata.uid for owner in metadata.get("ownerReferences") or ())
            if owned and metadata["name"] == job.status.fetch.pod and metadata["labels"].get(UID_LABEL) == job.metadata.uid:
                return FetchPod.from_raw(raw)
        return None

    def look(self, job: FinetuneJob, seen: Observed) -> Observed:
        """Add the pod, and the last that it has said of its progress."""
        pod = self.pod_of(job)
        if pod is None or pod.finished or not pod.ip:
            self.forget(job.key)
            return replace(seen, fetch=pod)
        return replace(seen, fetch=pod, fetch_progress=self._ask(job.key, pod))

    def forget(self, key: Key) -> None:
        """Ask no more for a job that is gone, or has fetched."""
        if (asked := self._asked.pop(key, None)) is not None:
            asked.task.cancel()

    def _ask(self, key: Key, pod: FetchPod) -> FetchProgress | None:
        """The last answer; and ask again, unless the pod still thinks about it."""
        asked, answer = self._asked.get(key), None
        if asked is not None and asked.pod == pod.uid:
            answer = asked.answer
            if not asked.task.done():
                return answer
            answer = asked.answer = asked.task.result() or answer
        self._asked[key] = _Asked(pod.uid, asyncio.create_task(self._read(pod.ip)), answer)
        return answer

    async def _read(self, ip: str) -> FetchProgress | None:
        async with self._few:
            return await self._ray.fetch_progress(f"http://[{ip}]:{FETCH_PORT}" if ":" in ip else f"http://{ip}:{FETCH_PORT}")
