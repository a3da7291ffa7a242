"""What is said of a job that is not there."""

from __future__ import annotations

from contextlib import suppress

from finetune_client.access import Access
from finetune_client.errors import ClientError, MissingError
from finetune_client.kube.rest import part
from finetune_operator.constants import JOB_LABEL


def missing(client: Access, name: str) -> MissingError:
    """There is no such job: perhaps it is a slip, or it was deleted and its result is still there."""
    hint = ""
    with suppress(ClientError):
        from difflib import get_close_matches

        names = [job.name for job in client.list()]
        near = get_close_matches(name, names, 1, 0.6)
        none = "" if names else " (there are none)"
        hint = f"did you mean {near[0]}?" if near else f"`finetune list` shows all jobs{none}"
    with suppress(ClientError):
        path = f"/api/v1/namespaces/{part(client.namespace)}/persistentvolumeclaims"
        claims, _ = client.rest.items(path, labelSelector=f"{JOB_LABEL}={name}")
        if claims:
            hint = f"a job of that name was deleted; its result is on the claim {claims[0]['metadata']['name']}"
    return MissingError(404, f"there is no finetunejob/{name} in namespace {client.namespace}", hint)
