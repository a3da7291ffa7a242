"""Whether somebody has deleted the output claim of a job that runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.clients.cache import Key
from finetune_operator.clients.kube import CLAIMS, KubeClient
from finetune_operator.desired import naming

LOOK_SECONDS = 10.0
"""How often the claim of a running job is read: it changes only when something has gone wrong."""


class OutputClaims:
    """Remembers for a while what it has seen of each job's claim."""

    def __init__(self, kube: KubeClient, clock: Callable[[], datetime]) -> None:
        self._kube = kube
        self._clock = clock
        self._seen: dict[Key, tuple[datetime, bool]] = {}

    async def is_being_deleted(self, job: FinetuneJob, *, fresh: bool) -> bool:
        """Whether the claim is being deleted, or is gone although it was there when the run began."""
        now, entry = self._clock(), self._seen.get(job.key)
        if not fresh and entry is not None and now - entry[0] < timedelta(seconds=LOOK_SECONDS):
            return entry[1]
        claim = await self._kube.get(CLAIMS, job.metadata.namespace, naming.output_claim_name(job))
        deleting = claim is None or "deletionTimestamp" in claim["metadata"]
        self._seen[job.key] = (now, deleting)
        return deleting

    def forget(self, key: Key) -> None:
        """Forget the claim of a job that has ended or is gone."""
        self._seen.pop(key, None)
