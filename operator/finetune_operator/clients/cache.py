"""Cache the last state of each watched object. Events fill it; a LIST corrects what a watch has lost.

Events and pages of a LIST may arrive in any order. What decides is the resource version: nothing that is older than what
is known, of the same object or of a deleted one, changes anything.
"""

from __future__ import annotations

import json
import zlib
from collections import OrderedDict, defaultdict
from dataclasses import dataclass
from typing import Any, NamedTuple

from finetune_operator.api.v1alpha1 import Phase, Reason
from finetune_operator.constants import GROUP, JOB_LABEL, KIND, PLURAL, RAY_PLURAL
from finetune_operator.desired.naming import scheduling_labels

Key = tuple[str, str]
"""(namespace, name of the FinetuneJob)."""
Object = dict[str, Any]


DELETED_KEPT = 500
"""How many deleted pods are remembered: a failed pod is replaced within a second, and explains later failures."""

TOMBSTONES_KEPT = 20_000
"""How many deletions are remembered, so that a page of a LIST that is older does not bring an object back. A LIST takes
seconds, and the memory of a deletion some 200 bytes."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """An object, packed: thousands of them would otherwise be millions of Python objects, which the garbage collector visits
    again and again while everything waits.
    """

    uid: str
    version: int
    job: Key | None
    resting: bool
    data: bytes

    def unpack(self) -> Object:
        data = zlib.decompress(self.data) if self.resting else self.data
        result: Object = json.loads(data)
        return result


class Waiting(NamedTuple):
    """A job that waits for nodes. The first two fields order jobs by age."""

    created: str
    uid: str
    phase: str


class Cache:
    """Objects by kind and name, and the index from a job to its cluster and pods."""

    def __init__(self) -> None:
        self._objects: dict[str, dict[Key, _Entry]] = defaultdict(dict)
        self._by_job: dict[str, dict[Key, set[Key]]] = defaultdict(lambda: defaultdict(set))
        self._deleted: OrderedDict[str, _Entry] = OrderedDict()
        self._tombstones: OrderedDict[str, int] = OrderedDict()
        """UID of a deleted object → the newest version that is known of it."""
        self._waiting: dict[Key, Waiting] = {}

    def put(self, plural: str, raw: Object, *, was_read: bool = False) -> bool:
        """Keep an object without unused fields; False if it is deleted, or a newer or equal one is already kept.

        One that was read by name just now lives, even if its deletion was told at the same version: then its label was
        taken away. A real deletion has a version of its own.
        """
        key, uid, version = _key(raw), raw["metadata"]["uid"], _version(raw)
        if version < self._tombstones.get(uid, -1) + (not was_read):
            return False
        self._tombstones.pop(uid, None)  # it was not deleted: its label was taken away, and put back
        old = self._objects[plural].get(key)
        if old is not None and version <= old.version:
            return False  # the same object, or one of this name that was deleted before the known one was made
        if old is not None:
            self._forget(plural, key, old)  # it may have belonged to another job
            if old.uid != uid:
                self._bury(old.uid, version)
        entry = _pack(plural, raw)
        self._objects[plural][key] = entry
        if plural == PLURAL and _waits(raw):
            self._waiting[key] = Waiting(raw["metadata"].get("creationTimestamp", ""), uid, raw["status"]["phase"])
        if entry.job is not None:
            self._by_job[plural][entry.job].add(key)
        return True

    def drop(self, plural: str, raw: Object) -> None:
        """Forget an object that was deleted, unless another has taken its name, or it is known to have come back: one whose
        label is taken away is as good as deleted for a watch, until it has its label again.
        """
        key, uid, version = _key(raw), raw["metadata"]["uid"], _version(raw)
        old = self._objects[plural].get(key)
        if old is None or old.uid != uid or old.version <= version:
            self._bury(uid, version)
        if old is not None and old.uid == uid and old.version <= version:
            self._forget(plural, key, old)
        if plural == "pods":
            self._deleted[uid] = _pack(plural, raw)
            if len(self._deleted) > DELETED_KEPT:
                self._deleted.popitem(last=False)

    def prune(self, plural: str, listed: set[str], version: int, namespace: str | None = None) -> list[Key]:
        """End a LIST of this resource version, whose objects were put: what is not newer, and is not among their UIDs, is
        gone. Gives the names of what was forgotten.
        """
        gone = [
            (key, old)
            for key, old in self._objects[plural].items()
            if old.version <= version and old.uid not in listed and namespace in {None, key[0]}
        ]
        for key, old in gone:
            self._bury(old.uid, version)
            self._forget(plural, key, old)
        return [old.job or key for key, old in gone]

    def keys(self, plural: str) -> set[Key]:
        """(namespace, name) of every object of a kind."""
        return set(self._objects[plural])

    def get(self, plural: str, key: Key) -> Object | None:
        """An object by namespace and name."""
        entry = self._objects[plural].get(key)
        return None if entry is None else entry.unpack()

    def is_at_rest(self, plural: str, key: Key) -> bool:
        """Whether a job has ended, and time alone changes nothing about it: no cluster, no pods, no time to live."""
        entry = self._objects[plural].get(key)
        return entry is not None and entry.resting and not any(key in self._by_job[owned] for owned in (RAY_PLURAL, "pods"))

    def of_job(self, plural: str, job: Key) -> list[Object]:
        """The objects that carry a job's label."""
        return [self._objects[plural][key].unpack() for key in sorted(self._by_job[plural].get(job, ()))]

    def deleted_pods(self, job: Key) -> list[Object]:
        """The last states of deleted pods with a job's label, in the order of their deletion; the oldest are forgotten."""
        return [entry.unpack() for entry in self._deleted.values() if entry.job == job]

    def waiting(self) -> dict[Key, Waiting]:
        """The jobs whose pods no node accepts, or which have given their pods back, and that are in no queue."""
        return self._waiting

    def _bury(self, uid: str, version: int) -> None:
        self._tombstones[uid] = max(version, self._tombstones.get(uid, 0))
        if len(self._tombstones) > TOMBSTONES_KEPT:
            self._tombstones.popitem(last=False)

    def _forget(self, plural: str, key: Key, old: _Entry) -> None:
        del self._objects[plural][key]
        if plural == PLURAL:
            self._waiting.pop(key, None)
        if old.job is not None:
            owned = self._by_job[plural][old.job]
            owned.discard(key)
            if not owned:
                del self._by_job[plural][old.job]


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
    return version_number(raw["metadata"].get("resourceVersion"))


def version_number(version: object) -> int:
    """Compare resource versions of one kind: Kubernetes 1.35 guarantees their order, and etcd always had it."""
    text = str(version)
    return int(text) if text.isascii() and text.isdigit() else 0


def _pack(plural: str, raw: Object) -> _Entry:
    resting = plural == PLURAL and _needs_nothing_more(raw)
    data = json.dumps(_slim(raw), separators=(",", ":")).encode()
    return _Entry(raw["metadata"]["uid"], _version(raw), job_of(raw), resting, zlib.compress(data, 1) if resting else data)


def _needs_nothing_more(raw: Object) -> bool:
    """Whether a job has ended, will not be deleted by its time to live, and its status is about the present spec."""
    spec, status, metadata = raw.get("spec") or {}, raw.get("status") or {}, raw["metadata"]
    seen = status.get("observedGeneration") == metadata.get("generation")
    return "completionTime" in status and spec.get("ttlSecondsAfterFinished") is None and seen


def _slim(raw: Object) -> Object:
    metadata = {key: value for key, value in raw["metadata"].items() if key != "managedFields"}
    annotations = metadata.get("annotations")
    if annotations:
        last_applied = "kubectl.kubernetes.io/last-applied-configuration"
        metadata["annotations"] = {key: value for key, value in annotations.items() if key != last_applied}
    return {key: value for key, value in raw.items() if key in {"spec", "status"}} | {"metadata": metadata}
