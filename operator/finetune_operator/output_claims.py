"""Whether somebody has deleted the output claim of a job that runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.clients.kube import CLAIMS, KubeClient
from finetune_operator.desired import naming

LOOK_SECONDS = 10.0
"""How often the claim of a running job is read: it changes only when something has gone wrong."""


class OutputClaims:
    """Remembers for a while what it has seen of each job's claim."""

    def __init__(self, kube: KubeClient, clock: Callable[[], datetime]) -> None:
        self._kube = kube
        self._clock = clock
        self._seen: dict[str, tuple[datetime, bool]] = {}

    async def is_being_deleted(self, job: FinetuneJob, *, fresh: bool) -> bool:
        """Whether the claim is being deleted, or is gone although it was there when the run began."""
        now = self._clock()
        self._seen = {uid: entry for uid, entry in self._seen.items() if now - entry[0] < timedelta(seconds=LOOK_SECONDS)}
        if not fresh and (entry := self._seen.get(job.metadata.uid)) is not None:
            return entry[1]
        claim = await self._kube.get(CLAIMS, job.metadata.namespace, naming.output_claim_name(job))
        deleting = claim is None or "deletionTimestamp" in claim["metadata"]
        self._seen[job.metadata.uid] = (now, deleting)
        return deleting
