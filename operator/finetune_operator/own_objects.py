"""Make the objects that belong to a job, and recognise those that others have made under the same name."""

from __future__ import annotations

from typing import Any

from finetune_operator.clients.kube import CLAIMS, CONFIG_MAPS, PODS, KubeClient
from finetune_operator.constants import UID_LABEL
from finetune_operator.errors import ConflictError, NameTakenError

Object = dict[str, Any]

_READABLE = {"ConfigMap": CONFIG_MAPS, "PersistentVolumeClaim": CLAIMS, "Pod": PODS}
"""Kinds that the operator may read. A Secret it may not: its name is what nobody can know before (`desired.secrets`)."""


async def make_own(kube: KubeClient, manifest: Object) -> None:
    """Create an object of a job, unless it is there already and is the one that would be made.

    Raises:
        NameTakenError: another object has its name.
        KubeError: the API server refused, or did not answer.
    """
    if await kube.create(manifest) is not None or manifest["kind"] not in _READABLE:
        return
    namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
    found = await kube.get(_READABLE[manifest["kind"]], namespace, name)
    if found is None:
        raise ConflictError(409, f"{manifest['kind']} {name} has been deleted meanwhile")
    if words := difference(manifest, found):
        raise NameTakenError(
            f"{manifest['kind']} {name} exists, and it is not the one of this job: {words}; delete it, or make the job anew "
            "under another name"
        )


def difference(manifest: Object, found: Object) -> str:
    """What tells an object from the one that the operator would make, or nothing."""
    uid = manifest["metadata"]["labels"][UID_LABEL]
    metadata = found["metadata"]
    if manifest["metadata"].get("ownerReferences"):
        if uid not in {owner.get("uid") for owner in metadata.get("ownerReferences") or ()}:
            return f"its ownerReferences do not have the UID {uid}"
    elif (metadata.get("labels") or {}).get(UID_LABEL) != uid:
        return f"its label {UID_LABEL} is not {uid}"
    if manifest["kind"] == "Pod":
        return ""
    return _different_claim(manifest, found) if manifest["kind"] == "PersistentVolumeClaim" else _different_data(manifest, found)


def _different_data(manifest: Object, found: Object) -> str:
    if found.get("data") != manifest["data"] or found.get("binaryData"):
        return "its data is another"
    return "" if found.get("immutable") is True else "it is not immutable, so that its data may change"


def _different_claim(manifest: Object, found: Object) -> str:
    """The size is not compared: a claim may be enlarged."""
    wanted, given = manifest["spec"], found.get("spec") or {}
    if set(given.get("accessModes") or ()) != set(wanted["accessModes"]):
        return f"its accessModes are not {', '.join(wanted['accessModes'])}"
    if "storageClassName" in wanted and given.get("storageClassName") != wanted["storageClassName"]:
        return f"its storageClassName is not {wanted['storageClassName']}"
    return ""
