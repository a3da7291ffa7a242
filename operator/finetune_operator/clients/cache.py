"""Cache the last state of each watched object. Events fill it; a LIST corrects what a watch has lost."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

from finetune_operator.api.v1alpha1 import Phase, Reason
from finetune_operator.constants import GROUP, JOB_LABEL, KIND, PLURAL
from finetune_operator.desired.naming import scheduling_labels

Key = tuple[str, str]
"""(namespace, name of the FinetuneJob)."""
Object = dict[str, Any]


DELETED_KEPT = 500
"""How many deleted pods are remembered: a failed pod is replaced within a second, and explains later failures."""


class Waiting(NamedTuple):
    """A job that waits for nodes. The first two fields order jobs by age."""

    created: str
    uid: str
    phase: str


class Cache:
    """Objects by kind and name, and the index from a job to its cluster and pods."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, Object]] = defaultdict(dict)
        self._by_job: dict[str, dict[Key, set[Key]]] = defaultdict(lambda: defaultdict(set))
        self._deleted: OrderedDict[str, Object] = OrderedDict()
        self._waiting: dict[Key, Waiting] = {}

    def put(self, plural: str, raw: Object) -> bool:
        """Keep an object without unused fields; False if a newer or equal one is already kept."""
        key = _key(raw)
        old = self._objects[plural].get(key)
        if old is not None and old["metadata"]["uid"] == raw["metadata"]["uid"] and _version(raw) <= _version(old):
            return False
        if old is not None:
            self._forget(plural, key, old)  # it may have belonged to another job
        self._objects[plural][key] = _slim(raw)
        if plural == PLURAL and _waits(raw):
            self._waiting[key] = Waiting(
                raw["metadata"].get("creationTimestamp", ""), raw["metadata"]["uid"], raw["status"]["phase"]
            )
        if (owner := job_of(raw)) is not None:
            self._by_job[plural][owner].add(key)
        return True

    def drop(self, plural: str, raw: Object) -> None:
        """Forget an object that was deleted, unless another has taken its name."""
        key = _key(raw)
        old = self._objects[plural].get(key)
        if old is not None and old["metadata"]["uid"] == raw["metadata"]["uid"]:
            self._forget(plural, key, old)
        if plural == "pods":
            self._deleted[raw["metadata"]["uid"]] = _slim(raw)
            if len(self._deleted) > DELETED_KEPT:
                self._deleted.popitem(last=False)

    def prune(self, plural: str, listed: Iterable[Object], known_before: set[Key]) -> None:
        """Apply a LIST: objects that were known before it started and are not in it are gone."""
        names = set()
        for raw in listed:
            names.add(_key(raw))
            self.put(plural, raw)
        for key in known_before - names:
            if (old := self._objects[plural].get(key)) is not None:
                self._forget(plural, key, old)

    def keys(self, plural: str) -> set[Key]:
        """(namespace, name) of every object of a kind."""
        return set(self._objects[plural])

    def get(self, plural: str, key: Key) -> Object | None:
        """An object by namespace and name."""
        return self._objects[plural].get(key)

    def of_job(self, plural: str, job: Key) -> list[Object]:
        """The objects that carry a job's label."""
        return [self._objects[plural][key] for key in sorted(self._by_job[plural].get(job, ()))]

    def deleted_pods(self, job: Key) -> list[Object]:
        """The last states of deleted pods with a job's label, in the order of their deletion; the oldest are forgotten."""
        return [raw for raw in self._deleted.values() if job_of(raw) == job]

    def waiting(self) -> dict[Key, Waiting]:
        """The jobs whose pods no node accepts, or which have given their pods back, and that are in no queue."""
        return self._waiting

    def _forget(self, plural: str, key: Key, old: Object) -> None:
        del self._objects[plural][key]
        if plural == PLURAL:
            self._waiting.pop(key, None)
        if (owner := job_of(old)) is not None:
            owned = self._by_job[plural][owner]
            owned.discard(key)
            if not owned:
                del self._by_job[plural][owner]


def job_of(raw: Object) -> Key | None:
    """The job that owns an object; of a pod, which its cluster owns, the one that its label names. Others may edit labels."""
    metadata = raw["metadata"]
    for owner in metadata.get("ownerReferences") or ():
        if owner.get("controller") and owner.get("kind") == KIND and owner.get("apiVersion", "").startswith(f"{GROUP}/"):
            return metadata["namespace"], owner["name"]
    name = (metadata.get("labels") or {}).get(JOB_LABEL)
    return (metadata["namespace"], name) if name else None


def _waits(raw: Object) -> bool:
    status = raw.get("status") or {}
    waits = status.get("reason") == Reason.UNSCHEDULABLE and status.get("phase") in {Phase.PROVISIONING, Phase.RETRYING}
    return waits and not scheduling_labels(raw["metadata"].get("labels") or {})


def _key(raw: Object) -> Key:
    return raw["metadata"]["namespace"], raw["metadata"]["name"]


def _version(raw: Object) -> int:
    """Compare resource versions of one kind: Kubernetes 1.35 guarantees their order, and etcd always had it."""
    version = raw["metadata"].get("resourceVersion", "0")
    return int(version) if version.isdigit() else 0


def _slim(raw: Object) -> Object:
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations:
        last_applied = "kubectl.kubernetes.io/last-applied-configuration"
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != last_applied}
    return {key: value for key, value in raw.items() if key in {"spec", "status"}} | {"metadata": metadata}
