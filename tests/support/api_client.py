"""A fast client of the API server for tests that make thousands of requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from kubernetes.aio import client, config
from tests.support.kubectl import Kubectl, Object

from finetune_operator.clients.kube import KubeClient

CONNECTIONS = 8


@dataclass(frozen=True)
class Answer:
    """What the API server said to an object."""

    status: int
    body: Object

    @property
    def taken(self) -> bool:
        """Whether it took the object. Anything but a verdict on the object itself is an error of the test."""
        assert self.status in {200, 201, 400, 422}, f"no verdict: {self.status} {self.body}"
        return self.status < 300

    @property
    def message(self) -> str:
        """Why it refused the object; empty if it did not."""
        return "" if self.taken else str(self.body.get("message"))


class Api:
    """FinetuneJobs of one namespace."""

    def __init__(self, kube: KubeClient, namespace: str) -> None:
        self.kube = kube
        """The operator's own client."""
        self.namespace = namespace
        host, self._session = kube.proxy_session()
        self._url = f"{host}/apis/llmonray.dev/v1alpha1/namespaces/{namespace}/finetunejobs?fieldValidation=Strict"
        self._slots = asyncio.Semaphore(CONNECTIONS)

    async def close(self) -> None:
        await self._session.close()
        await self.kube.close()

    async def create(self, job: Object) -> Answer:
        """Store a job."""
        return await self._post(self._url, job)

    async def offer(self, job: Object) -> Answer:
        """The API server's verdict on a job, which is not stored."""
        return await self._post(f"{self._url}&dryRun=All", job)

    async def _post(self, url: str, job: Object) -> Answer:
        headers = {"Content-Type": "application/json"}
        async with self._slots, self._session.post(url, data=to_json(job), headers=headers) as response:
            return Answer(response.status, json.loads(await response.read()))


@contextlib.asynccontextmanager
async def connected(kubectl: Kubectl) -> AsyncIterator[Api]:
    """Logged in by the kubeconfig of the tests."""
    settings = client.Configuration()
    await config.load_kube_config(config_file=str(kubectl.kubeconfig), client_configuration=settings)
    api = Api(KubeClient(client.ApiClient(settings)), kubectl.namespace)
    try:
        yield api
    finally:
        await api.close()


def to_json(value: Any) -> bytes:
    """Exactly what is checked offline: no NaN, and no text that JSON would not give back."""
    body = json.dumps(value, allow_nan=False)
    assert repr(json.loads(body)) == repr(value)
    return body.encode()
