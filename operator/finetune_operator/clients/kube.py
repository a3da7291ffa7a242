"""The client of the Kubernetes API: plain JSON objects; outcomes are values, refusals are exceptions."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
from kubernetes.aio import client, config

from finetune_operator.clients.bounded import bounded_session
from finetune_operator.constants import FIELD_MANAGER, GROUP, PLURAL, RAY_GROUP, RAY_PLURAL, RAY_VERSION_API, VERSION
from finetune_operator.errors import ConflictError, KindMissingError, KubeError, KubeUnavailableError, NotFoundError

Object = dict[str, Any]

REQUEST_TIMEOUT_SECONDS = 30.0

PAGE_SIZE = 100
"""Objects in a page of a LIST. A FinetuneJob has some 10 KB, so a page takes 10 ms to parse, in which nothing else happens."""


@dataclass(frozen=True)
class Kind:
    """Where the objects of a kind are found."""

    prefix: str
    """Path of group and version."""
    plural: str


FINETUNE_JOBS = Kind(f"/apis/{GROUP}/{VERSION}", PLURAL)
RAY_CLUSTERS = Kind(f"/apis/{RAY_GROUP}/{RAY_VERSION_API}", RAY_PLURAL)
PODS = Kind("/api/v1", "pods")
CLAIMS = Kind("/api/v1", "persistentvolumeclaims")
CONFIG_MAPS = Kind("/api/v1", "configmaps")
SECRETS = Kind("/api/v1", "secrets")
EVENTS = Kind("/api/v1", "events")
NODES = Kind("/api/v1", "nodes")
WORKLOADS = Kind("/apis/kueue.x-k8s.io/v1beta1", "workloads")
PRIORITY_CLASSES = Kind("/apis/scheduling.k8s.io/v1", "priorityclasses")

_KINDS_BY_NAME = {
    "RayCluster": RAY_CLUSTERS,
    "PersistentVolumeClaim": CLAIMS,
    "ConfigMap": CONFIG_MAPS,
    "Secret": SECRETS,
    "Event": EVENTS,
    "Pod": PODS,
}

_METADATA_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"


@dataclass(frozen=True)
class Page:
    """A part of a LIST."""

    items: list[Object]
    version: str
    """resourceVersion of the state that all pages of the LIST show."""


class KubeClient:
    """Requests to the API server with the pod's service account, or a kubeconfig outside a cluster.

    Raises, in every method: KubeUnavailableError when the outcome is unknown, KindMissingError when the CRD is not
    installed, ConflictError on a 409 that is no outcome, KubeError on any other refusal.
    """

    def __init__(self, api: client.ApiClient) -> None:
        self._api = api

    @classmethod
    async def connect(cls) -> KubeClient:
        """Log in as a pod does, else as kubectl does."""
        try:
            config.load_incluster_config()  # type: ignore[no-untyped-call]
        except config.ConfigException:
            await config.load_kube_config()  # type: ignore[no-untyped-call]
        return cls(client.ApiClient())

    async def close(self) -> None:
        """Close the connections."""
        await self._api.close()  # type: ignore[no-untyped-call]

    def proxy_session(self) -> tuple[str, aiohttp.ClientSession]:
        """The API server's address, and a session that may use its proxy to services."""
        options = self._api.configuration
        tls = ssl.create_default_context(cafile=options.ssl_ca_cert)
        if options.cert_file:
            tls.load_cert_chain(options.cert_file, options.key_file)
        token = options.api_key.get("BearerToken") or options.api_key.get("authorization")
        headers = {"Authorization": token} if token else {}
        return options.host, bounded_session(headers, connector=aiohttp.TCPConnector(ssl=tls))

    async def get(self, kind: Kind, namespace: str, name: str) -> Object | None:
        """An object, or None if it does not exist. The namespace of a cluster-scoped object is empty."""
        try:
            return await self._request("GET", _path(kind, namespace, name))
        except NotFoundError:
            return None

    async def list_metadata(self, kind: Kind, namespace: str) -> list[Object]:
        """The metadata of all objects of a kind in a namespace, without their other parts."""
        return [raw async for page in self.pages(kind, namespace, accept=_METADATA_ONLY) for raw in page.items]

    async def list(self, kind: Kind, namespace: str | None = None, label: str = "") -> list[Object]:
        """All objects of a kind at once: for kinds with few of them, or with small ones."""
        return [raw async for page in self.pages(kind, namespace, label) for raw in page.items]

    async def names(self, kind: Kind, namespace: str) -> frozenset[str]:
        """The names of all objects of a kind in a namespace; nothing else of them is sent."""
        return frozenset(raw["metadata"]["name"] for raw in await self.list_metadata(kind, namespace))

    async def pages(
        self, kind: Kind, namespace: str | None = None, label: str = "", *, accept: str = "application/json"
    ) -> AsyncIterator[Page]:
        """All objects of a kind, page by page: whoever keeps less of them than they are never holds more than one page.

        Raises:
            KubeError: also when the pages took so long that the API server has forgotten the state that they show (410).
        """
        query = {"limit": str(PAGE_SIZE)} | ({"labelSelector": label} if label else {})
        while True:
            answer = await self._request("GET", _path(kind, namespace), query=query, accept=accept)
            metadata = answer.get("metadata") or {}
            yield Page(answer.get("items") or [], metadata.get("resourceVersion", ""))
            if not (token := metadata.get("continue")):
                return
            query |= {"continue": token}

    async def patch_labels(self, kind: Kind, namespace: str, name: str, uid: str, labels: dict[str, str]) -> Object | None:
        """Merge labels into the object with this UID; None when it is gone, or another one has its name."""
        body = {"metadata": {"uid": uid, "labels": labels}}
        try:
            return await self._request("PATCH", _path(kind, namespace, name), body=body, query={"fieldManager": FIELD_MANAGER})
        except (ConflictError, NotFoundError):
            return None

    async def create(self, manifest: Object) -> Object | None:
        """Create an object; None when one of that name exists already."""
        kind = _KINDS_BY_NAME[manifest["kind"]]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        try:
            return await self._request("POST", _path(kind, manifest["metadata"]["namespace"]), body=manifest, query=query)
        except ConflictError as error:
            if error.message.startswith("AlreadyExists"):
                return None
            raise

    async def delete(self, kind: Kind, namespace: str, name: str, uid: str) -> None:
        """Delete the object with this UID; do nothing if it is gone, or another one has its name."""
        options = {"kind": "DeleteOptions", "apiVersion": "v1", "preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._request("DELETE", _path(kind, namespace, name), body=options)
        except (ConflictError, NotFoundError):
            return

    async def patch_status(self, namespace: str, name: str, resource_version: str, patch: Object) -> Object | None:
        """Merge into a FinetuneJob's status; None when the job is gone.

        Raises:
            ConflictError: the job has changed since that resourceVersion.
        """
        body = {"metadata": {"resourceVersion": resource_version}, "status": patch}
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        try:
            return await self._request("PATCH", _path(FINETUNE_JOBS, namespace, name) + "/status", body=body, query=query)
        except NotFoundError:
            return None

    async def _request(
        self,
        method: str,
        path: str,
        *,
        body: Object | None = None,
        query: dict[str, str] | None = None,
        accept: str = "application/json",
    ) -> Object:
        headers = {"Accept": accept}
        if body is not None:
            headers["Content-Type"] = "application/merge-patch+json" if method == "PATCH" else "application/json"
        try:
            prepared = await self._api.param_serialize(
                method,
                path,
                query_params=list((query or {}).items()),
                header_params=headers,
                body=body,
                auth_settings=["BearerToken"],
            )
            response = await self._api.call_api(*prepared, _request_timeout=REQUEST_TIMEOUT_SECONDS)
            data: bytes = await response.read()  # type: ignore[no-untyped-call]
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise KubeUnavailableError(0, f"the API server does not answer: {error!r}") from error
        if response.status >= 400:
            raise _refusal(response.status, data, path)
        result: Object = json.loads(data)
        return result


def _path(kind: Kind, namespace: str | None, name: str | None = None) -> str:
    path = kind.prefix + (f"/namespaces/{namespace}" if namespace else "") + f"/{kind.plural}"
    return f"{path}/{name}" if name else path


def _refusal(status: int, data: bytes, path: str) -> KubeError:
    try:
        answer = json.loads(data)
    except ValueError:
        answer = None
    answer = answer if isinstance(answer, dict) else {}
    message = str(answer.get("message") or data[:500].decode(errors="replace"))
    if status == 404:
        # the API server names a missing object; the answer for an unknown kind has no name
        named = (answer.get("details") or {}).get("name")
        return NotFoundError(status, message) if named else KindMissingError(status, f"{path}: {message}")
    if status == 409:
        return ConflictError(status, f"{answer.get('reason', 'Conflict')}: {message}")
    if status == 429 or status >= 500:
        return KubeUnavailableError(status, message)
    return KubeError(status, message)
