"""Plays the kubelet for the pods that copy files: runs what each pod says, on a folder that stands for its claim."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.support.fake_kube import FakeKube
from tests.support.http_server import ResetConnection

Object = dict[str, Any]


class HelperPods:
    """The pods, and the API server's proxy to them."""

    def __init__(self, kube: FakeKube) -> None:
        self.claims: dict[str, Path] = {}
        """Claim → its folder."""
        self.made: list[Object] = []
        self.requests = 0
        self.cuts: dict[int, str] = {}
        """Number of a request → where its connection is cut: ``before`` or ``after`` its effect, or within the ``body``."""
        self.damage = b""
        """What is put into the place of the bytes that a file begins with, once."""
        self.pending = 0
        """How many requests for a checksum are answered by 202, as if the file were large."""
        self.never_ready: Object | None = None
        """The status of pods that do not become ready."""
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self._ports: dict[str, int] = {}
        self._kube = kube
        kube.listeners.append(self._see)

    def _see(self, type_: str, plural: str, pod: Object) -> None:
        name = pod["metadata"]["name"]
        if plural != "pods" or not name.startswith("finetune-files-"):
            return
        if type_ == "ADDED":
            self.made.append(pod)
            status = self.never_ready or {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
            if self.never_ready is None:
                self._start(name, pod)
            self._kube.objects["pods"][pod["metadata"]["namespace"], name]["status"] = status
        elif type_ == "DELETED" and name in self._processes:
            self._end(name)

    def _start(self, name: str, pod: Object) -> None:
        """The container's command, with a folder for the mount and any free port."""
        spec = pod["spec"]
        claim = spec["volumes"][0]["persistentVolumeClaim"]["claimName"]
        _, option, program, _mount, _port, digest, writer = spec["containers"][0]["command"]
        command = [sys.executable, option, program, str(self.claims[claim]), "0", digest, writer]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        self._processes[name], self._ports[name] = process, int(process.stdout.readline())

    def _end(self, name: str) -> None:
        process = self._processes.pop(name)
        process.kill()
        process.communicate()

    def close(self) -> None:
        """End what was not deleted."""
        for name in list(self._processes):
            self._end(name)

    async def forward(self, request: web.BaseRequest) -> web.StreamResponse:
        """What the API server's proxy does; cuts connections as told."""
        name = request.path.split("/pods/")[1].split(":")[0]
        self.requests += 1
        cut = self.cuts.get(self.requests, "")
        body = await request.content.read()  # request.read() takes a megabyte at most
        if name not in self._processes:
            return web.json_response({"kind": "Status", "status": "Failure", "message": "no pod", "code": 503}, status=503)
        if cut == "before":
            raise ResetConnection
        if self.pending and "hold=" in request.query_string:
            self.pending -= 1
            return web.json_response({"pending": True, "hashedBytes": self.requests, "sizeBytes": 1 << 40}, status=202)
        target = f"http://127.0.0.1:{self._ports[name]}/{request.path_qs.split('/proxy/', 1)[1]}"
        headers = {key: value for key, value in request.headers.items() if key in {"X-Finetune-Token", "Content-Type"}}
        async with (
            aiohttp.ClientSession() as session,
            session.request(request.method, target, data=io.BytesIO(body), headers=headers) as answer,
        ):
            data = await answer.read()
            status = answer.status
        if cut == "after":
            raise ResetConnection
        if self.damage and request.path.endswith("/file") and request.method == "GET" and "manifest.json" not in target:
            data, self.damage = self.damage + data[len(self.damage) :], b""
        return await self._send(request, status, data, cut_off=cut == "body")

    @staticmethod
    async def _send(request: web.BaseRequest, status: int, data: bytes, *, cut_off: bool) -> web.StreamResponse:
        response = web.StreamResponse(status=status, headers={"Content-Length": str(len(data))})
        await response.prepare(request)
        await response.write(data[: len(data) // 2] if cut_off else data)
        if cut_off and request.transport is not None:
            request.transport.abort()
        return response
