"""`FinetuneClient.upload` and `download`: which claim, which image, which files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from finetune_client import submission
from finetune_client.access import Access
from finetune_client.errors import ClientError, ExistsError, JobEndedError, MissingError, RefusedError, look_at
from finetune_client.home import at_home
from finetune_client.job import Job
from finetune_client.kube.rest import part
from finetune_client.transfer.copies import Count, Tell, fetch, files_of, manifest_of, send
from finetune_client.transfer.names import target_name
from finetune_client.transfer.pod import helper
from finetune_trainer.output.manifest import MANIFEST

Object = dict[str, Any]
Say = Callable[[str], None]

EXTRAS = ("report.html", "logs/metrics.jsonl")
"""Files that are worth having beside those of the manifest."""

MODEL_FILES = ("adapter_config.json", "config.json")
"""By these a folder is taken for an adapter or a model: they come last, so that a result that was cut off is not."""


def download(client: Access, name: str, folder: str | Path, image: str | None, progress: Tell, say: Say) -> Path:
    """Copy the result of a job here; see `FinetuneClient.download`."""
    job = client.get(name)
    output = job.status.output
    if output is None or output.manifest_sha256 is None:
        raise JobEndedError(f"{job} has no complete result ({job.state})", look_at(name))
    target = at_home(folder)
    claim, source = output.persistent_volume_claim, output.path
    with helper(client, claim, image or image_of(client, job), read_only=True, tell=say) as pod:
        try:
            text, entries = manifest_of(pod, source, output.manifest_sha256)
        except RefusedError as error:
            if error.status != 404:
                raise
            raise MissingError(404, f"the folder {source} is not on the claim {claim} any more") from error
        count = Count(sum(entry.size_bytes for entry in entries), progress)
        for entry in sorted(entries, key=lambda entry: entry.path in MODEL_FILES):
            fetch(pod, f"{source}/{entry.path}", target / entry.path, entry.size_bytes, entry.sha256, count)
        for extra in sorted({*EXTRAS} - {entry.path for entry in entries}):
            found = pod.ask_for_hash("GET", "digest", lambda _: None, path=f"{source}/{extra}")
            if "sha256" in found:
                fetch(pod, f"{source}/{extra}", target / extra, found["sizeBytes"], found["sha256"], Count(0, lambda _: None))
    (target / MANIFEST).write_bytes(text)  # last, as the trainer does: with it the result is complete
    return target


def upload(
    client: Access,
    files: Sequence[str | Path],
    claim: str,
    path: str,
    image: str | None,
    create: str | None,
    progress: Tell,
    say: Say,
) -> list[str]:
    """Copy files to a claim; see `FinetuneClient.upload`."""
    found = list(files_of(files))
    if create:
        _create_claim(client, claim, create)
    else:
        _require_claim(client, claim)
    sent = []
    with helper(client, claim, image or image_of(client, None), read_only=False, tell=say) as pod:
        count = Count(sum(file.stat().st_size for file, _ in found), progress)
        for file, name in found:
            target = "/".join(filter(None, (path.strip("/"), name)))
            send(pod, file, target, count)
            sent.append(target)
    return sent


def upload_rows(
    client: Access, manifest: Object, file: str | Path, image: str | None, create: str | None, progress: Tell, say: Say
) -> str:
    """Copy the rows of a job that is not created yet to the claim of its data; give their place there."""
    claim, folder = submission.place_of_rows(manifest)
    upload(client, [file], claim, folder, image or manifest["spec"].get("image"), create, progress, say)
    return f"{claim}:{'/'.join(filter(None, (folder, target_name(file))))}"


def _claims(client: Access) -> str:
    return f"/api/v1/namespaces/{part(client.namespace)}/persistentvolumeclaims"


def _require_claim(client: Access, claim: str) -> None:
    try:
        client.rest.get(f"{_claims(client)}/{part(claim)}")
    except MissingError as error:
        message = f"there is no claim {claim} in namespace {client.namespace}"
        raise MissingError(404, message, "--create SIZE, as --create 10Gi, makes it") from error


def _create_claim(client: Access, claim: str, size: str) -> None:
    spec: Object = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": size}}}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": spec}
    with suppress(ExistsError):
        client.rest.call("POST", _claims(client), body=body)


def image_of(client: Access, job: Job | None) -> str:
    """An image with Python that the cluster has: the job's, that of another job, or the operator's setting."""
    jobs = [job] if job else client.list()
    for item in jobs:
        image = item.read("status", "defaults", "image") or item.read("spec", "image")
        if image:
            return str(image)
    with suppress(ClientError):
        label = "app.kubernetes.io/name=finetune-operator"
        found, _ = client.rest.items("/apis/apps/v1/deployments", labelSelector=label)
        for deployment in map(Job, found):
            containers = deployment.read("spec", "template", "spec", "containers") or ()
            for variable in (variable for container in containers for variable in container.get("env") or ()):
                if variable.get("name") == "FINETUNE_TRAINER_IMAGE" and variable.get("value"):
                    return str(variable["value"])
    raise ClientError("the trainer's image is not known", "name it with --image; any image with Python 3.11 or newer will do")
