"""The Ray dashboards of all clusters on one HTTP server: ``/<namespace>/<cluster>/api/…``, with Ray 2.60's words."""

from __future__ import annotations

import asyncio
import json
import re
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web
from tests.support.fake_kube import Gate
from tests.support.http_server import ResetConnection, Seen

_PATH = re.compile(r"^/(?P<namespace>[^/]+)/(?P<cluster>[^/]+)(?P<rest>/api/.*)$")


@dataclass
class Head:
    """The dashboard of one cluster."""

    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Submission id → what Ray says about it; tests change ``status`` and ``message``."""
    progress: dict[str, Any] | None = None
    """The last report of the trainer, or None while there is no such file."""
    stops: list[str] = field(default_factory=list)
    """Submission ids that were asked to stop, as often as they were."""
    down: bool = False
    """It resets every connection."""
    silent: bool = False
    """It accepts connections and never answers, as behind a NetworkPolicy that drops packets."""
    forgetful: bool = False
    """It accepts every submission and knows none."""
    logs: dict[str, str] = field(default_factory=dict)
    """Submission id → what its driver has printed."""
    refusal: tuple[int, str] | None = None
    """Status and text that every submission gets."""


class FakeRay:
    """Dashboards that come into being when they are asked."""

    def __init__(self, gate: Gate | None = None, token_of: Callable[[str, str], str | None] = lambda _ns, _name: None) -> None:
        self.heads: dict[str, Head] = defaultdict(Head)
        """By the cluster's name."""
        self.requests: list[Seen] = []
        self.accepted: list[dict[str, Any]] = []
        """Body of each submission that was new to its cluster."""
        self.obeys = False
        """Whether a driver that is asked to stop stops at once; otherwise tests say when."""
        self.gate = gate or Gate()
        self._token_of = token_of

    def posts(self) -> list[Seen]:
        """Submissions, whatever came of them."""
        return [seen for seen in self.requests if seen.method == "POST" and seen.path.endswith("/api/jobs/")]

    async def __call__(self, seen: Seen) -> web.Response:
        self.gate.check()
        self.requests.append(seen)
        match = _PATH.match(seen.path)
        if match is None:
            return web.Response(status=404, text="404: Not Found")
        head = self.heads[match["cluster"]]
        if head.silent:
            await asyncio.Event().wait()
        if head.down:
            raise ResetConnection
        token = self._token_of(match["namespace"], match["cluster"])
        if token is not None and seen.headers.get("x-ray-authorization") != f"Bearer {token}":
            return web.Response(status=401, text="Unauthorized: Missing or invalid authentication token")
        if seen.method == "POST" and match["rest"].endswith("/stop"):
            return self._stop(head, match["rest"].split("/")[-2])
        if seen.method == "POST":
            return self._submit(head, seen)
        return _read(head, match["rest"])

    def _stop(self, head: Head, submission_id: str) -> web.Response:
        self.gate.before("POST stop")
        if submission_id not in head.jobs:
            return web.Response(status=404, text=f"Job {submission_id} does not exist")
        head.stops.append(submission_id)
        if self.obeys:
            head.jobs[submission_id]["status"] = "STOPPED"
        self.gate.after()
        return web.json_response({"stopped": True})

    def _submit(self, head: Head, seen: Seen) -> web.Response:
        self.gate.before("POST job")
        body = json.loads(seen.text)
        submission_id = body["submission_id"]
        if head.refusal is not None:
            return web.Response(status=head.refusal[0], text=head.refusal[1])
        if submission_id in head.jobs:
            text = (
                f"Traceback (most recent call last):\nException: Job with submission_id {submission_id} already exists. "
                "Please use a different submission_id.\n"
            )
            answer = web.Response(status=500, text=text)
        else:
            if not head.forgetful:
                head.jobs[submission_id] = {"status": "PENDING", "message": "Job has not started yet."}
            self.accepted.append(body)
            answer = web.json_response({"job_id": submission_id, "submission_id": submission_id})
        self.gate.after()
        return answer


def _job(head: Head, submission_id: str) -> web.Response:
    if submission_id not in head.jobs:
        return web.Response(status=404, text=f"Job {submission_id} does not exist")
    return web.json_response({"submission_id": submission_id, "type": "SUBMISSION"} | head.jobs[submission_id])


def _read(head: Head, path: str) -> web.Response:
    if path == "/api/version":
        return web.json_response({"ray_version": "2.60.0"})
    if path == "/api/v0/logs/file":
        return _log(head)
    if path.endswith("/logs"):
        return _driver_log(head, path.split("/")[-2])
    return _job(head, path.rsplit("/", 1)[-1])


def _driver_log(head: Head, submission_id: str) -> web.Response:
    if submission_id not in head.logs:
        return web.Response(status=404, text=f"Job {submission_id} does not exist")
    return web.json_response({"logs": head.logs[submission_id]})


def _log(head: Head) -> web.Response:
    if head.progress is None:
        return web.Response(status=500, text="0FileNotFoundError: finetune-progress.json")
    return web.Response(text="1" + json.dumps(head.progress) + "\n")
