"""Jobs of an earlier operator by number, each with a name, a UID and a cluster of its own."""

from __future__ import annotations

from typing import Any

from tests.support.builders import KEYS, NAMESPACE, begun, raw_job
from tests.system.world import READY, World

from finetune_operator.api.v1alpha1 import RayStatus, dump
from finetune_operator.constants import KEY_ANNOTATION


def uid(number: int) -> str:
    return f"{number:08x}-5d1b-4c7e-9a35-2b6f8d9e0c11"


def add(world: World, number: int, namespace: str = NAMESPACE, **status: Any) -> str:
    """A job whose driver is submitted; the name of its cluster."""
    name, id_ = f"job-{number}", uid(number)
    cluster = f"{name}-{id_[:5]}-1"
    ray = RayStatus(cluster=cluster, submission_id=f"{id_}-a1", workers_desired=2, workers="0/2")
    stored = begun(submitted=True, **status).model_copy(update={"ray": ray})
    metadata = {"name": name, "namespace": namespace, "uid": id_}
    world.kube.put("finetunejobs", raw_job(metadata=metadata, status=dump(stored)))
    return cluster


def add_cluster(world: World, number: int, cluster: str, namespace: str = NAMESPACE) -> None:
    """The RayCluster of that job, all ready."""
    name, id_ = f"job-{number}", uid(number)
    owner = {"apiVersion": "llmonray.dev/v1alpha1", "kind": "FinetuneJob", "name": name, "uid": id_, "controller": True}
    metadata = {
        "name": cluster,
        "namespace": namespace,
        "labels": {"llmonray.dev/finetunejob": name},
        "annotations": {KEY_ANNOTATION: KEYS.current_id},
        "ownerReferences": [owner],
    }
    world.kube.put("rayclusters", {"metadata": metadata, "spec": {"authOptions": {"secretName": "none"}}, "status": READY})
