"""The API server in memory with watches and discovery, for operators that are whole processes."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from multidict import CIMultiDict
from tests.support.fake_kube import PATH, FakeKube, is_selected, refuse
from tests.support.http_server import Handler, Seen

Object = dict[str, Any]
KINDS = {
    "/api/v1": {"pods": "Pod", "persistentvolumeclaims": "PersistentVolumeClaim", "namespaces": "Namespace"},
    "/apis/llmonray.dev/v1alpha1": {"finetunejobs": "FinetuneJob"},
    "/apis/ray.io/v1": {"rayclusters": "RayCluster"},
    "/apis/apiextensions.k8s.io/v1": {"customresourcedefinitions": "CustomResourceDefinition"},
}


class WatchedKube:
    """Serves a FakeKube, and streams its changes."""

    def __init__(self, kube: FakeKube, services: Handler | None = None) -> None:
        self.kube = kube
        self._services = services
        """Answers for what is behind the API server's proxy."""
        self.forbidden: set[tuple[str, str]] = set()
        """(namespace, plural) that the operator may not read."""
        self.watches: list[tuple[str, dict[str, str]]] = []
        """(path, query) of each watch that was opened."""
        self._history: dict[str, list[tuple[int, str, Object]]] = defaultdict(list)
        self._changed = asyncio.Condition()
        self._cuts = 0
        self._tasks: set[asyncio.Task[None]] = set()
        kube.listeners.append(self._record)

    @asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """On a free port of loopback; gives the address."""
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            host, port = runner.addresses[0][:2]
            yield f"http://{host}:{port}"
        finally:
            await runner.cleanup()

    async def cut(self) -> None:
        """End all watches, as a load balancer or a restart of the API server does."""
        self._cuts += 1
        await self._wake()

    def _record(self, type_: str, plural: str, obj: Object) -> None:
        self._history[plural].append((int(obj["metadata"]["resourceVersion"]), type_, copy.deepcopy(obj)))
        task = asyncio.get_running_loop().create_task(self._wake())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _wake(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        query = dict(request.query)
        if request.path in {"/api", "/apis", *KINDS}:
            return web.json_response(self._discovery(request.path))
        seen = Seen(request.method, request.path, query, CIMultiDict(request.headers), await request.text())
        if self._services is not None and "/proxy/" in request.path:
            return await self._services(seen)
        match = PATH.match(request.path)
        if match is not None and (match["namespace"], match["plural"]) in self.forbidden:
            return refuse(403, "Forbidden", f"cannot list {match['plural']} in the namespace {match['namespace']}", "")
        if "watch" not in query or match is None:
            return await self.kube(seen)
        if match["plural"] in self.kube.missing:
            return web.Response(status=404, text="404 page not found\n")
        return await self._watch(request, match["plural"], match["namespace"], query)

    async def _watch(
        self, request: web.BaseRequest, plural: str, namespace: str | None, query: dict[str, str]
    ) -> web.StreamResponse:
        self.watches.append((request.path, query))
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        version, cuts = int(query.get("resourceVersion", "0")), self._cuts
        while cuts == self._cuts:
            for number, type_, obj in [event for event in self._history[plural] if event[0] > version]:
                version = number
                if namespace in {None, obj["metadata"].get("namespace")} and is_selected(obj, query):
                    await response.write(json.dumps({"type": type_, "object": obj}).encode() + b"\n")
            async with self._changed:
                await self._changed.wait()
        return response

    def _discovery(self, path: str) -> Object:
        if path == "/api":
            return {"versions": ["v1"]}
        if path == "/apis":
            groups = [prefix.split("/")[2:] for prefix in KINDS if prefix.startswith("/apis/")]
            return {"groups": [_group(*parts) for parts in groups]}
        verbs = ["get", "list", "watch", "patch", "create", "delete"]
        return {
            "resources": [
                {"name": name, "kind": kind, "singularName": "", "namespaced": name != "namespaces", "verbs": verbs}
                for name, kind in KINDS[path].items()
                if name not in self.kube.missing
            ]
        }


def _group(name: str, version: str) -> Object:
    group = {"groupVersion": f"{name}/{version}", "version": version}
    return {"name": name, "versions": [group], "preferredVersion": group}
