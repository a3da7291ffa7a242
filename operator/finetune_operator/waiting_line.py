"""What a job that waits for nodes sees of the others, from the cache."""

from __future__ import annotations

from finetune_operator.api.v1alpha1 import FinetuneJob, Phase
from finetune_operator.clients.cache import Cache
from finetune_operator.observed import Line


def line_of(job: FinetuneJob, cache: Cache) -> Line | None:
    """The other jobs that wait for nodes; None when this one does not."""
    waiting = cache.waiting()
    own = waiting.get(job.key)
    if own is None:
        return None
    others = [other for key, other in waiting.items() if key != job.key]
    older = [other for other in others if other[:2] < own[:2]]
    return Line(
        competing=any(other.phase == Phase.PROVISIONING for other in others),
        older_competing=any(other.phase == Phase.PROVISIONING for other in older),
        older=bool(older),
    )
