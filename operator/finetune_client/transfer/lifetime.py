"""A helper pod is made, and deleted whatever happens meanwhile; those that others could not delete are, too."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from time import sleep
from typing import Any

from finetune_client.access import Access
from finetune_client.errors import ClientError, NotLoggedInError, RefusedError
from finetune_client.job import Job
from finetune_client.kube.rest import part
from finetune_client.transfer.signals import as_exceptions, held_back

Object = dict[str, Any]

LABEL = "llmonray.dev/copies-files"
LIFETIME_SECONDS = 12 * 3600
"""Longest copy; then Kubernetes ends the pod, whatever has become of whoever made it."""
ENDED = frozenset({"Succeeded", "Failed"})
DELETION_PAUSES = (0.2, 0.5, 1.0, 2.0, 0.0)
"""After each try to delete a pod."""
DELETION_SECONDS = 10.0
"""Then a user who has ended the command is not kept any longer."""
MOST_SWEPT = 10


def pods_of(client: Access) -> str:
    """Path of the pods of the namespace."""
    return f"/api/v1/namespaces/{part(client.namespace)}/pods"


@contextmanager
def made(client: Access, pod: Object, tell: Callable[[str], None]) -> Iterator[None]:
    """A pod during the block. Ctrl-C, SIGTERM and SIGHUP end the block, and wait until the pod is deleted.

    Args:
        client: its namespace.
        pod: its manifest.
        tell: is told if it could not be deleted.

    Raises:
        ClientError: it cannot be made.
    """
    refused = is_certain = False
    with as_exceptions():
        try:
            try:
                client.rest.call("POST", pods_of(client), body=pod)
                is_certain = True
            except (RefusedError, NotLoggedInError):
                refused = True
                raise
            yield
        finally:
            if not refused:
                with held_back():
                    _delete(client, str(pod["metadata"]["name"]), tell, is_certain=is_certain)


def _delete(client: Access, name: str, tell: Callable[[str], None], *, is_certain: bool) -> None:
    """Delete a pod, or tell how the user can do it."""
    deletion = _Deletion(client, name, is_certain=is_certain)
    deletion.start()
    deletion.join(DELETION_SECONDS)
    if deletion.problem:
        words = f"the helper pod {name} {'is left behind' if is_certain else 'may be left behind'}: {deletion.problem}"
        with suppress(OSError, ValueError):  # nobody reads it any more
            tell(f"{words}\n  -> kubectl delete pod {name} -n {client.namespace}")


class _Deletion(threading.Thread):
    """Deletes a pod, in a thread of its own: a request may wait longer for its answer than the user."""

    def __init__(self, client: Access, name: str, *, is_certain: bool) -> None:
        super().__init__(daemon=True)
        self.problem = "the API server does not answer in time"
        """Why it is not deleted; empty when it is."""
        self._client, self._path, self._is_certain = client, f"{pods_of(client)}/{part(name)}", is_certain

    def run(self) -> None:
        """Try it some times; a pod that may not be there yet is looked for until the last try."""
        for pause in DELETION_PAUSES:
            try:
                self._client.rest.call("DELETE", self._path, body={"gracePeriodSeconds": 0})
            except RefusedError as error:
                self.problem = "" if error.status == 404 else error.message
                if error.status != 404 or self._is_certain:
                    return
            except ClientError as error:
                self.problem = error.message
            else:
                self.problem = ""
                return
            sleep(pause)


def sweep(client: Access) -> None:
    """Delete helper pods of the namespace that have ended, and could not run any more if they had not."""
    with suppress(ClientError):  # it need not be allowed
        found, _ = client.rest.items(pods_of(client), labelSelector=f"{LABEL}=true")
        for pod in [pod for pod in map(Job, found) if _is_left_over(pod)][:MOST_SWEPT]:
            options = {"gracePeriodSeconds": 0, "preconditions": {"uid": pod.read("metadata", "uid")}}
            client.rest.call("DELETE", f"{pods_of(client)}/{part(pod.name)}", body=options)


def _is_left_over(pod: Job) -> bool:
    has_ended = pod.read("status", "phase") in ENDED and pod.read("metadata", "labels", LABEL) == "true"
    return has_ended and pod.created is not None and (datetime.now(UTC) - pod.created).total_seconds() > LIFETIME_SECONDS
