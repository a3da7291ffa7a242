"""The Ray dashboard of one cluster: submit, state, and the trainer's progress file.

A poll that fails is `observed.UNKNOWN`, never a failure of the job. The token goes into ``x-ray-authorization``, which,
unlike ``Authorization``, passes the API server's proxy unchanged. The user chooses the image that answers: `bounded` reads it.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import Any, Literal

import aiohttp
from pydantic import ValidationError

from finetune_operator.clients.bounded import is_bounded, parse_object, read_body
from finetune_operator.constants import DASHBOARD_PORT
from finetune_operator.desired import naming
from finetune_operator.errors import RayError, RayUnavailableError
from finetune_operator.observed import RayJob
from finetune_operator.text import clip
from finetune_trainer.fetch.report import FetchProgress
from finetune_trainer.tracking.progress import RAY_LOG_FILE, Progress

POLL_SECONDS = 5.0
SUBMIT_SECONDS = 30.0
"""Within these a request has its whole answer, however the server sends it."""

_STATES: dict[str, Literal["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"]] = {
    "PENDING": "PENDING",
    "RUNNING": "RUNNING",
    "STOPPED": "STOPPED",
    "SUCCEEDED": "SUCCEEDED",
    "FAILED": "FAILED",
}


@dataclass(frozen=True, repr=False)
class Dashboard:
    """The address of a cluster's dashboard, and its token."""

    url: str
    token: str

    @classmethod
    def by_service(cls, namespace: str, cluster: str, token: str, domain: str = "cluster.local") -> Dashboard:
        """From inside the Kubernetes cluster, whose DNS domain it is."""
        return cls(f"http://{naming.dashboard_service(cluster)}.{namespace}.svc.{domain}:{DASHBOARD_PORT}", token)

    @classmethod
    def by_proxy(cls, api_server: str, namespace: str, cluster: str, token: str) -> Dashboard:
        """From outside, through the API server."""
        service = f"{naming.dashboard_service(cluster)}:{DASHBOARD_PORT}"
        return cls(f"{api_server}/api/v1/namespaces/{namespace}/services/{service}/proxy", token)


class RayClient:
    """Requests to dashboards, over a session of `bounded_session`."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        if not is_bounded(session):
            raise ValueError("dashboards are asked over a session of clients.bounded.bounded_session only")
        self._session = session

    async def submit(self, dashboard: Dashboard, submission: dict[str, Any]) -> None:
        """Submit once: an id that Ray already knows is a success, so the call can be repeated after a crash.

        Raises:
            RayUnavailableError: no answer; whether the job was submitted is unknown.
            RayError: Ray refuses the submission.
        """
        status, body = await self._call("POST", dashboard, "/api/jobs/", SUBMIT_SECONDS, json=submission)
        if status < 300 or "use a different submission_id" in body:
            return
        if status in {401, 403, 502, 503, 504}:
            raise RayUnavailableError(_answers(status, body))
        raise RayError(f"Ray refused the submission ({status}): {clip(body, 2000)}")

    async def stop(self, dashboard: Dashboard, submission_id: str) -> None:
        """Ask a run to stop; the call can be repeated. Ray sends SIGTERM, and SIGKILL after a time that is set on the head.

        Raises:
            RayUnavailableError: no answer; whether it was asked is unknown.
        """
        status, body = await self._call("POST", dashboard, f"/api/jobs/{submission_id}/stop", POLL_SECONDS)
        if status >= 300 and status != 404:
            raise RayUnavailableError(_answers(status, body))

    async def job(self, dashboard: Dashboard, submission_id: str) -> RayJob:
        """What Ray says about a submission."""
        try:
            status, body = await self._call("GET", dashboard, f"/api/jobs/{submission_id}", POLL_SECONDS)
        except RayUnavailableError as error:
            return RayJob("Unknown", cause=str(error))
        if status == 404 and submission_id in body:
            return RayJob("Missing")  # this is Ray's own answer; a 404 of a proxy does not name the id
        details = parse_object(body)
        state = _STATES.get(str(details.get("status")))
        if status >= 300 or state is None:
            return RayJob("Unknown", cause=_answers(status, body))
        return RayJob(state, str(details.get("message") or ""))

    async def progress(self, dashboard: Dashboard, head_ip: str) -> Progress | None:
        """The last report of the trainer; None: there is none, or the dashboard does not answer."""
        query = f"/api/v0/logs/file?node_ip={head_ip}&filename={RAY_LOG_FILE}&lines=1"
        try:
            status, body = await self._call("GET", dashboard, query, POLL_SECONDS)
        except RayUnavailableError:
            return None
        start = body.find("{")  # Ray puts a status character before the file's text
        if status >= 300 or start < 0:
            return None
        try:
            return Progress.model_validate(parse_object(body[start:]))
        except ValidationError:
            return None

    async def fetch_progress(self, address: str) -> FetchProgress | None:
        """What a pod that fetches says of its progress; None: it does not answer, or something else."""
        try:
            status, body = await self._call("GET", Dashboard(address, ""), "/", POLL_SECONDS)
            return FetchProgress.model_validate(parse_object(body)) if status == 200 else None
        except (RayUnavailableError, ValidationError):
            return None

    async def _call(self, method: str, dashboard: Dashboard, path: str, seconds: float, **body: Any) -> tuple[int, str]:
        headers = {"x-ray-authorization": f"Bearer {dashboard.token}"} if dashboard.token else {}
        # the loop holds the time, from the look-up of the name to the last byte
        options: dict[str, Any] = {"headers": headers, "timeout": aiohttp.ClientTimeout(total=None), **body}
        try:
            # no redirects: the user chose the image that answers, and no other server may get the credentials
            async with (
                asyncio.timeout(seconds),
                self._session.request(method, dashboard.url + path, allow_redirects=False, **options) as answer,
            ):
                return answer.status, await read_body(answer)
        except RayUnavailableError:
            raise
        except Exception as error:  # whatever an answer brings about in a library, it is no answer of Ray
            raise RayUnavailableError(_cause(error, seconds)) from error


def _cause(error: Exception, seconds: float) -> str:
    """Why there is no answer, in words that are the same each time, so that the status is not written anew each time."""
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return f"the name {error.host} cannot be resolved"
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:.0f} s"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"no connection: {os.strerror(error.os_error.errno) if error.os_error.errno else clip(str(error.os_error), 200)}"
    if isinstance(error, aiohttp.ServerDisconnectedError | OSError):
        return "the connection was closed before an answer came"
    return f"its answer cannot be read: {clip(str(error), 200)}"


def _answers(status: int, body: str) -> str:
    """What came instead of Ray's answer."""
    words = clip(body[:500], 200)
    if status in {401, 403}:
        return f"it refuses the operator's token ({status}){words and ': '}{words}"
    return f"it gives status {status} and not Ray's answer{words and ': '}{words}"
