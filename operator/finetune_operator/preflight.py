"""Look for the objects that a job needs before anything is created for it.

Secrets are not looked for: the operator may not read them, and a pod reports a missing one. Nodes and PriorityClasses
belong to the whole cluster, so only an install that watches all namespaces may see them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from finetune_operator.api.v1alpha1 import FinetuneJob, Reason, ResumeStatus
from finetune_operator.clients.kube import CLAIMS, CONFIG_MAPS, FINETUNE_JOBS, NODES, PRIORITY_CLASSES, Kind, KubeClient
from finetune_operator.decide.resumption import resume_point
from finetune_operator.desired.accelerators import gpu_resources
from finetune_operator.desired.storage import required_claims, required_config_maps
from finetune_operator.errors import KubeError, KubeUnavailableError
from finetune_operator.observed import Missing, Observed
from finetune_operator.settings import Settings

NODES_SECONDS = 5.0
"""How long a LIST of the nodes is reused: many waiting jobs share one."""


class Preflight:
    """Looks for the objects that jobs name."""

    def __init__(self, kube: KubeClient, settings: Settings, clock: Callable[[], float] = time.monotonic) -> None:
        self._kube = kube
        self._settings = settings
        self._clock = clock
        self._looking = asyncio.Lock()
        self._nodes: list[dict[str, Any]] = []
        self._nodes_seen: float | None = None

    async def observe(self, job: FinetuneJob) -> Observed:
        """What is missing, and the source from which the job starts.

        Raises:
            KubeUnavailableError: the API server did not answer.
        """
        found = await self._resume_point(job)
        if isinstance(found, Missing):
            return Observed(missing=(found, *await self.missing(job)))
        status = job.status.model_copy(update={"resume": found})
        return Observed(missing=await self.missing(job.model_copy(update={"status": status})), resume=found)

    async def _resume_point(self, job: FinetuneJob) -> ResumeStatus | Missing | None:
        """Resolve spec.resumeFrom. A name that occurs twice belongs to a job that was deleted and created again."""
        found: ResumeStatus | Missing | str | None = job.status.resume or job.spec.resume_from
        seen = {job.metadata.name}
        while isinstance(found, str):
            name, namespace = found, job.metadata.namespace
            raw = await self._kube.get(FINETUNE_JOBS, namespace, name)
            found = resume_point(raw) if raw else Missing.of_kind("FinetuneJob", "resumeFrom", name, namespace)
            if isinstance(found, str) and found in seen:
                found = ResumeStatus(job=name, uid=raw["metadata"]["uid"] if raw else "")
            seen.add(name)
        return found

    async def missing(self, job: FinetuneJob) -> tuple[Missing, ...]:
        """All missing objects, in the order of the spec.

        Raises:
            KubeUnavailableError: the API server did not answer.
        """
        namespace = job.metadata.namespace
        looks = [self._look("PersistentVolumeClaim", CLAIMS, *item, namespace) for item in required_claims(job).items()]
        looks += [self._look("ConfigMap", CONFIG_MAPS, *item, namespace) for item in required_config_maps(job).items()]
        if not self._settings.namespaces:
            looks += [self._look("PriorityClass", PRIORITY_CLASSES, *item) for item in _priority_classes(job)]
            looks += [self._look_for_node(job)]
        return tuple(missing for missing in await asyncio.gather(*looks) if missing is not None)

    async def _look(self, name: str, kind: Kind, key: str, wanted: str, namespace: str = "") -> Missing | None:
        found = await _unless_forbidden(self._kube.get(kind, namespace, wanted), {})
        return Missing.of_kind(name, key, wanted, namespace) if found is None else None

    async def _look_for_node(self, job: FinetuneJob) -> Missing | None:
        """Find a node with as many GPUs as a worker requests; whether they are free is decided by the scheduler."""
        if not self._settings.check_nodes:
            return None
        for resource, wanted in gpu_resources(job).items():
            offers = [_allocatable(node, resource) for node in await self._all_nodes()]
            if offers and max(offers) < int(wanted):
                most = f"the most that one has is {max(offers)}" if max(offers) else "none has any"
                message = (
                    f"no node offers {resource}: {wanted} for a worker (spec.config.Training.resources_per_worker.GPU); {most}"
                )
                return Missing(Reason.NO_SUCH_RESOURCE, message)
        return None

    async def _all_nodes(self) -> list[dict[str, Any]]:
        async with self._looking:  # jobs that arrive together share the answer, too
            now = self._clock()
            if self._nodes_seen is None or now - self._nodes_seen >= NODES_SECONDS:
                self._nodes = await _unless_forbidden(self._kube.list(NODES), [])
                self._nodes_seen = now
            return self._nodes


def _priority_classes(job: FinetuneJob) -> list[tuple[str, str]]:
    options = {"head": job.spec.head, "workers": job.spec.workers}
    names = {key: option.priority_class_name for key, option in options.items() if option}
    return [(f"{key}.priorityClassName", name) for key, name in names.items() if name]


def _allocatable(node: dict[str, Any], resource: str) -> int:
    quantity = str(((node.get("status") or {}).get("allocatable") or {}).get(resource, "0"))
    return int(quantity) if quantity.isdigit() else 0


async def _unless_forbidden(look: Any, otherwise: Any) -> Any:
    """Treat what the operator may not read as existing: then the scheduler reports what is missing."""
    try:
        return await look
    except KubeUnavailableError:
        raise
    except KubeError as error:
        if error.status != 403:
            raise
        return otherwise
