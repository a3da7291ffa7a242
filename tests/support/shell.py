"""The command line as somebody with a kubeconfig types it, and a cluster on loopback for it."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from multidict import CIMultiDict
from tests.support.builders import KEYS, NAMESPACE, UID, raw_job
from tests.support.fake_kube import PATH, FakeKube
from tests.support.fake_ray import FakeRay
from tests.support.helper_pods import HelperPods
from tests.support.http_server import ResetConnection, Seen
from tests.support.watched_kube import WatchedKube

from finetune_client.cli import main

Object = dict[str, Any]

CLUSTER = "demo-1f0c3-1"
SUBMISSION = f"{UID}-a1"
SECRET = "demo-token"
TOKEN = KEYS.token(UID)

_PROXY = re.compile(r"^/api/v1/namespaces/(?P<ns>[^/]+)/services/(?P<cluster>.+)-head-svc:8265/proxy(?P<rest>/.*)$")
_GROUP = re.compile(r"^/apis/(?P<group>[^/]+)/(?P<version>[^/]+)$")


class Cluster(WatchedKube):
    """An API server with what the command line asks for beside objects: version, groups, rights, Ray dashboards."""

    def __init__(self, kube: FakeKube) -> None:
        self.ray = FakeRay(token_of=lambda _namespace, _cluster: TOKEN)
        super().__init__(kube, self._dashboard)
        self.helpers = HelperPods(kube)
        self.missing_groups = {"kueue.x-k8s.io"}
        self.denied: set[str] = set()
        """``VERB RESOURCE`` of what the user may not do."""
        self.unknown_user = False
        self.seen: list[Seen] = []
        self.dropped_watches = 0
        """How many watches are answered by an end at once."""
        self.expired_watches = 0
        """How many watches are answered by 410."""

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if "/pods/" in request.path and "/proxy/" in request.path:
            return await self._reset_or(self.helpers.forward(request), request)
        headers = CIMultiDict(request.headers)
        seen = Seen(request.method, request.path, dict(request.query), headers, await request.text())
        self.seen.append(seen)
        if (answer := self._answer(seen)) is not None:
            return answer
        if "watch" in seen.query and (self.dropped_watches or self.expired_watches):
            return self._refuse_watch()
        return await self._reset_or(super()._handle(request), request)

    @staticmethod
    async def _reset_or(answer: Awaitable[web.StreamResponse], request: web.BaseRequest) -> web.StreamResponse:
        try:
            return await answer
        except ResetConnection:
            if request.transport is not None:
                request.transport.abort()
            return web.Response()

    def _refuse_watch(self) -> web.Response:
        if self.expired_watches:
            self.expired_watches -= 1
            gone = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return web.Response(text=json.dumps({"type": "ERROR", "object": gone}) + "\n")
        self.dropped_watches -= 1
        return web.Response(text="")

    def _answer(self, seen: Seen) -> web.Response | None:
        if self.unknown_user:
            return _status(401, "Unauthorized")
        if seen.path == "/version":
            return web.json_response({"gitVersion": "v1.34.1"})
        if seen.path.endswith("/selfsubjectaccessreviews"):
            return self._review(json.loads(seen.text))
        found = _GROUP.match(seen.path)
        return self._group(found["group"]) if found else self._refusal(seen)

    def _refusal(self, request: Seen) -> web.Response | None:
        match = PATH.match(request.path)
        verb = {"GET": "get", "POST": "create", "PATCH": "patch"}.get(request.method, "")
        if match is None:
            what = "get services/proxy" if "/proxy/" in request.path else ""
        else:
            verb = "watch" if "watch" in request.query else "list" if verb == "get" and not match["name"] else verb
            what = f"{verb} {match['plural']}"
        if what not in self.denied:
            return None
        verb, _, resource = what.partition(" ")
        said = f'User "me" cannot {verb} resource "{resource}" in the namespace "{NAMESPACE}"'
        return _status(403, f"{resource} is forbidden: {said}")

    def _review(self, review: Object) -> web.Response:
        asked = review["spec"]["resourceAttributes"]
        resource = asked["resource"] + (f"/{asked['subresource']}" if "subresource" in asked else "")
        return web.json_response(review | {"status": {"allowed": f"{asked['verb']} {resource}" not in self.denied}})

    def _group(self, group: str) -> web.Response:
        plural = {"llmonray.dev": "finetunejobs", "ray.io": "rayclusters"}.get(group, "things")
        if group in self.missing_groups or plural in self.kube.missing:
            return web.Response(status=404, text="404 page not found\n")
        return web.json_response({"resources": [{"name": plural}]})

    async def _dashboard(self, seen: Seen) -> web.StreamResponse:
        found = _PROXY.match(seen.path)
        assert found is not None, seen.path
        if self.kube.get("rayclusters", (found["ns"], found["cluster"])) is None:
            return _status(404, f'services "{found["cluster"]}-head-svc" not found')
        path = f"/{found['ns']}/{found['cluster']}{found['rest']}"
        return await self.ray(Seen(seen.method, path, seen.query, seen.headers, seen.text))

    def start_ray(self, *, log: str | None = None, cluster: str = CLUSTER, submission: str = SUBMISSION) -> None:
        """The RayCluster of an attempt at the job, the first one, its Secret, and what its driver has printed."""
        metadata = {"name": cluster, "namespace": NAMESPACE}
        self.kube.put("rayclusters", {"metadata": metadata, "spec": {"authOptions": {"mode": "token", "secretName": SECRET}}})
        data = {"auth_token": base64.b64encode(TOKEN.encode()).decode()}
        self.kube.put("secrets", {"metadata": {"name": SECRET, "namespace": NAMESPACE}, "data": data})
        if log is not None:
            self.ray.heads[cluster].logs[submission] = log


def _status(code: int, message: str) -> web.Response:
    reason = {401: "Unauthorized", 403: "Forbidden", 404: "NotFound"}[code]
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.json_response(body, status=code)


def login(folder: Path, url: str) -> Path:
    """A kubeconfig with two contexts; the current one has the jobs' namespace."""
    context = {"cluster": "here", "user": "me", "namespace": NAMESPACE}
    contexts = [{"name": "work", "context": context}, {"name": "home", "context": context | {"namespace": "elsewhere"}}]
    users, clusters = [{"name": "me", "user": {"token": "t"}}], [{"name": "here", "cluster": {"server": url}}]
    config = {"apiVersion": "v1", "kind": "Config", "contexts": contexts, "current-context": "work"}
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config | {"users": users, "clusters": clusters}))
    return path


class Shell:
    """Runs commands, and looks at the cluster."""

    def __init__(self, cluster: Cluster, capsys: pytest.CaptureFixture[str]) -> None:
        self.cluster = cluster
        self.kube = cluster.kube
        self._capsys = capsys

    async def run(self, *arguments: str) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        code = await asyncio.to_thread(_exit_code, arguments)
        return code, *self._capsys.readouterr()

    def add(self, name: str = "demo", phase: str | None = "Failed", **parts: Any) -> Object:
        """A job of the namespace."""
        metadata = {"name": name} | parts.pop("metadata", {})
        status = parts.pop("status", {}) | ({"phase": phase} if phase else {})
        return self.kube.put("finetunejobs", raw_job(metadata=metadata, status=status, **parts))

    def job(self, name: str = "demo") -> Object:
        """A job as it is stored."""
        job = self.kube.get("finetunejobs", (NAMESPACE, name))
        assert job is not None
        return job

    def writes(self) -> list[str]:
        """What was to change something."""
        return [f"{seen.method} {seen.path}" for seen in self.kube.writes()]


def _exit_code(arguments: tuple[str, ...]) -> int:
    try:
        return main(arguments)
    except SystemExit as error:
        return int(error.code or 0)


@asynccontextmanager
async def shell_at(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    """A cluster on loopback, and a shell that is logged in there."""
    cluster = Cluster(FakeKube())
    async with cluster.serve() as url:
        monkeypatch.setenv("KUBECONFIG", str(login(folder, url)))
        monkeypatch.setenv("COLUMNS", "100")
        try:
            yield Shell(cluster, capsys)
        finally:
            cluster.helpers.close()
