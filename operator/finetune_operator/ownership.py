"""The Ray clusters that a job owns, as the API server has them: found by name or by owner, never by a label, since others may
edit labels, and a watch by label takes such an edit for a deletion.
"""

from __future__ import annotations

import logging

from finetune_operator.api.v1alpha1 import JobIdentity
from finetune_operator.clients.cache import Cache
from finetune_operator.clients.kube import RAY_CLUSTERS, KubeClient, Object
from finetune_operator.constants import RAY_PLURAL
from finetune_operator.decide import DeleteCluster
from finetune_operator.desired import naming

logger = logging.getLogger(__name__)


class Ownership:
    """Reads clusters from the API server and corrects the cache."""

    def __init__(self, kube: KubeClient, cache: Cache) -> None:
        self._kube = kube
        self._cache = cache

    async def read_cluster(self, job: JobIdentity) -> None:
        """Read the cluster of the current attempt, and put labels back that somebody has removed.

        Raises:
            KindMissingError: nothing is known of RayClusters now.
        """
        if job.status.ray is None:
            return
        namespace, name = job.metadata.namespace, job.status.ray.cluster
        old = self._cache.get(RAY_PLURAL, (namespace, name))
        cluster = await self._kube.get(RAY_CLUSTERS, namespace, name)
        if cluster is None:
            if old is not None:
                self._cache.drop(RAY_PLURAL, old)
            return
        labels = naming.labels(job)
        if _is_owned(cluster, job) and not labels.items() <= (cluster["metadata"].get("labels") or {}).items():
            logger.warning("%s/%s: labels of cluster %s were changed; they are put back", *job.key, name)
            uid = cluster["metadata"]["uid"]
            cluster = await self._kube.patch_labels(RAY_CLUSTERS, namespace, name, uid, labels) or cluster
        self._cache.put(RAY_PLURAL, cluster)

    async def other_clusters(self, job: JobIdentity, keep: str | None) -> tuple[DeleteCluster, ...]:
        """Deletions of the clusters that the job owns besides the one to keep, and that nobody deletes already."""
        found = await self._kube.list_metadata(RAY_CLUSTERS, job.metadata.namespace)
        return tuple(
            DeleteCluster(raw["metadata"]["name"], raw["metadata"]["uid"])
            for raw in found
            if _is_owned(raw, job) and raw["metadata"]["name"] != keep and "deletionTimestamp" not in raw["metadata"]
        )


def _is_owned(raw: Object, job: JobIdentity) -> bool:
    owners = raw["metadata"].get("ownerReferences") or ()
    return any(owner.get("controller") and owner.get("uid") == job.metadata.uid for owner in owners)
