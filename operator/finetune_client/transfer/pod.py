"""The helper pod: made with the trainer's image, asked through the API server's proxy to pods, and deleted afterwards."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from time import monotonic, sleep
from typing import Any

from finetune_client.access import Access
from finetune_client.errors import ClientError, ForbiddenError, MissingError, RefusedError, UnreachableError
from finetune_client.job import Job
from finetune_client.kube.rest import Answer, part
from finetune_client.transfer.lifetime import ENDED, LABEL, LIFETIME_SECONDS, made, pods_of, sweep

Object = dict[str, Any]

PORT = 8000
MOUNT = "/claim"
USER = 1000
"""User and group of the trainer image: files that are written here can be read by jobs."""
START_SECONDS = 300
TRIES = 8
"""How often a request is repeated whose answer did not come."""
PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0)
HOLD_SECONDS = 5
"""How long the pod waits with its answer for a checksum; then it says how far it is, and is asked again."""
STALL_SECONDS = 300
"""How long nothing more of a file may be hashed; a claim may stand still while its storage is busy."""
PREFIX = "finetune-files-"
"""Of the names of helper pods; what follows names the pod as a writer of files."""


@dataclass(frozen=True, repr=False)
class Helper:
    """A pod that serves a claim."""

    client: Access
    name: str
    token: str

    def get(self, request: str, **query: str | int) -> Object:
        """A JSON answer."""
        return self._object(self.ask("GET", request, query))

    def put(self, request: str, data: bytes = b"", **query: str | int) -> Object:
        """Send a part of a file, or a request without one."""
        return self._object(self.ask("PUT", request, query, data))

    def read(self, path: str, offset: int, length: int) -> bytes:
        """A part of a file."""
        return self.ask("GET", "file", {"path": path, "offset": offset, "length": length}).body

    def ask_for_hash(self, method: str, request: str, tell: Callable[[int], None], **query: str | int) -> Object:
        """A JSON answer for which the pod needs the checksum of a file, however long that takes.

        Args:
            method: of HTTP.
            request: its name.
            tell: is told how many bytes are hashed, while that goes on.
            query: its arguments.

        Raises:
            UnreachableError: the pod does not get on.
        """
        hashed, since = -1, monotonic()
        while True:
            data = b"" if method == "PUT" else None
            answer = self._object(self.ask(method, request, {**query, "hold": HOLD_SECONDS}, data))
            if not answer.get("pending"):
                return answer
            if (now := int(answer.get("hashedBytes") or 0)) != hashed:
                hashed, since = now, monotonic()
            elif monotonic() - since > STALL_SECONDS:
                message = f"the helper pod {self.name} does not get on with the checksum of {query.get('path')}"
                raise UnreachableError(message, "look whether the storage of the claim is in order; then type the command again")
            tell(hashed)

    def is_named(self, writer: str) -> bool:
        """Whether this pod is a writer."""
        return self.name == PREFIX + writer

    def is_at_work(self, writer: str) -> bool:
        """Whether another helper pod may still write to the claim."""
        try:
            pod = Job(self.client.rest.get(f"{pods_of(self.client)}/{part(PREFIX + writer)}"))
        except MissingError:
            return False
        except ClientError:
            return True  # nobody knows
        return pod.read("status", "phase") not in ENDED

    def ask(self, method: str, request: str, query: dict[str, str | int], data: bytes | None = None) -> Answer:
        """One request, repeated while no answer comes.

        Raises:
            RefusedError: the pod refuses it.
            UnreachableError: no answer comes, however often it is asked.
        """
        for number in range(TRIES):
            try:
                return self._ask_once(method, request, query, data)
            except UnreachableError:
                if number == TRIES - 1:
                    raise
                sleep(PAUSES[min(number, len(PAUSES) - 1)])
        raise AssertionError

    def _ask_once(self, method: str, request: str, query: dict[str, str | int], data: bytes | None) -> Answer:
        path = f"{pods_of(self.client)}/{part(self.name)}:{PORT}/proxy/{request}"
        texts = {key: str(value) for key, value in query.items()}
        answer = self.client.rest.ask(method, path, texts, data, {"X-Finetune-Token": self.token})
        if answer.status < 300:
            return answer
        said = answer.body[:500].decode(errors="replace")
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(answer.body)
            said = str(told.get("error") or told.get("message"))
            if told.get("kind") == "Status" and answer.status == 403:
                hint = f"copying files needs the right to create pods and pods/proxy in namespace {self.client.namespace}"
                raise ForbiddenError(403, f"the API server says: {said}", hint)
        if answer.status == 507:
            raise RefusedError(507, f"the claim has no room left ({said})", "make it larger, or delete what is not needed")
        if answer.status >= 500:
            raise UnreachableError(f"the helper pod {self.name} does not answer ({answer.status}): {said}")
        raise RefusedError(answer.status, f"the helper pod says: {said}")

    @staticmethod
    def _object(answer: Answer) -> Object:
        try:
            value = json.loads(answer.body)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise UnreachableError("the helper pod gives no object", "does --image name an image of yours? leave it out")
        return value


@contextmanager
def helper(
    client: Access, claim: str, image: str, *, read_only: bool, tell: Callable[[str], None], near: str | None = None
) -> Iterator[Helper]:
    """A pod for a claim, deleted at the end.

    Args:
        client: the namespace of the claim.
        claim: what it mounts.
        image: with Python 3.11 or newer.
        read_only: whether it writes nothing.
        tell: is told what it waits for.
        near: a RayCluster that uses the claim now: a ReadWriteOnce claim can be mounted on the nodes of its pods only.

    Raises:
        ClientError: it cannot be made, or does not start in time; with the reason.
    """
    sweep(client)
    token, name = secrets.token_hex(32), f"{PREFIX}{secrets.token_hex(4)}"
    with made(client, manifest(name, claim, image, token, read_only=read_only, near=near), tell):
        _wait(client, f"{pods_of(client)}/{name}", claim, tell)
        yield Helper(client, name, token)


def manifest(name: str, claim: str, image: str, token: str, *, read_only: bool, near: str | None = None) -> Object:
    """The pod: under Pod Security `restricted`, without a service account, and with the hash of the token only."""
    program = files("finetune_client.transfer").joinpath("server.py").read_text(encoding="utf-8")
    digest = hashlib.sha256(token.encode()).hexdigest()
    container = {
        "name": "files",
        "image": image,
        "command": ["python", "-c", program, MOUNT, str(PORT), digest, name.removeprefix(PREFIX)],
        "ports": [{"containerPort": PORT}],
        "readinessProbe": {"tcpSocket": {"port": PORT}, "periodSeconds": 1},
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "claim", "mountPath": MOUNT, "readOnly": read_only}],
    }
    spec: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LIFETIME_SECONDS,
        "terminationGracePeriodSeconds": 0,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [{"name": "claim", "persistentVolumeClaim": {"claimName": claim}}],
    }
    if near:
        term = {"labelSelector": {"matchLabels": {"ray.io/cluster": near}}, "topologyKey": "kubernetes.io/hostname"}
        preferred = [{"weight": 100, "podAffinityTerm": term}]
        spec["affinity"] = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {LABEL: "true"}}, "spec": spec}


def _wait(client: Access, path: str, claim: str, tell: Callable[[str], None]) -> None:
    deadline, told = monotonic() + START_SECONDS, ""
    while True:
        pod = Job(client.rest.get(path))
        problem = _problem(pod)
        phase = pod.read("status", "phase")
        conditions = pod.read("status", "conditions") or ()
        if phase == "Running" and any(item.get("type") == "Ready" and item.get("status") == "True" for item in conditions):
            return
        if phase in {"Failed", "Succeeded"} or monotonic() > deadline:
            hint = f"see `kubectl describe pvc {claim}`; a ReadWriteOnce claim can be mounted on one node at a time"
            raise ClientError(f"the helper pod for the claim {claim} does not start: {problem or phase}", hint)
        if problem and problem != told:
            tell(f"the helper pod waits: {problem}")
            told = problem
        sleep(0.3)


def _problem(pod: Job) -> str:
    """Why a pod does not run, in the words of scheduler or kubelet."""
    for item in pod.read("status", "containerStatuses") or ():
        for state in ("waiting", "terminated"):
            found = Job(item).read("state", state)
            if isinstance(found, dict) and found.get("reason") not in {None, "ContainerCreating"}:
                return f"{found['reason']} {found.get('message') or ''}".strip()
    for item in pod.read("status", "conditions") or ():
        if item.get("type") == "PodScheduled" and item.get("status") == "False":
            return str(item.get("message") or item.get("reason") or "")
    return str(pod.read("status", "message") or "")
