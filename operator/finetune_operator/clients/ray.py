"""The Ray dashboard of one cluster: submit, state, and the trainer's progress file.

A poll that fails is `observed.UNKNOWN`, never a failure of the job. The token goes into ``x-ray-authorization``, which,
unlike ``Authorization``, passes the API server's proxy unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import aiohttp
from pydantic import ValidationError

from finetune_operator.constants import DASHBOARD_PORT
from finetune_operator.desired import naming
from finetune_operator.errors import RayError, RayUnavailableError
from finetune_operator.observed import UNKNOWN, RayJob
from finetune_trainer.tracking.progress import RAY_LOG_FILE, Progress

POLL_TIMEOUT = aiohttp.ClientTimeout(total=5)
SUBMIT_TIMEOUT = aiohttp.ClientTimeout(total=30)

MAX_MILLISECONDS = 10**14
"""Times beyond the year 5000 are rejected: Python could not represent much later ones."""

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
    def by_service(cls, namespace: str, cluster: str, token: str) -> Dashboard:
        """From inside the Kubernetes cluster."""
        return cls(f"http://{naming.dashboard_service(cluster)}.{namespace}.svc.cluster.local:{DASHBOARD_PORT}", token)

    @classmethod
    def by_proxy(cls, api_server: str, namespace: str, cluster: str, token: str) -> Dashboard:
        """From outside, through the API server."""
        service = f"{naming.dashboard_service(cluster)}:{DASHBOARD_PORT}"
        return cls(f"{api_server}/api/v1/namespaces/{namespace}/services/{service}/proxy", token)


class RayClient:
    """Requests to dashboards, over one connection pool."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def submit(self, dashboard: Dashboard, submission: dict[str, Any]) -> None:
        """Submit once: an id that Ray already knows is a success, so the call can be repeated after a crash.

        Raises:
            RayUnavailableError: no answer; whether the job was submitted is unknown.
            RayError: Ray refuses the submission.
        """
        status, body = await self._call("POST", dashboard, "/api/jobs/", SUBMIT_TIMEOUT, json=submission)
        if status < 300 or "use a different submission_id" in body:
            return
        if status in {401, 403, 502, 503, 504}:
            raise RayUnavailableError(f"{status}: {body[:500]}")
        raise RayError(f"Ray refused the submission ({status}): {body[-2000:]}")

    async def stop(self, dashboard: Dashboard, submission_id: str) -> None:
        """Ask a run to stop; the call can be repeated. Ray sends SIGTERM, and SIGKILL after a time that is set on the head.

        Raises:
            RayUnavailableError: no answer; whether it was asked is unknown.
        """
        status, body = await self._call("POST", dashboard, f"/api/jobs/{submission_id}/stop", POLL_TIMEOUT)
        if status >= 300 and status != 404:
            raise RayUnavailableError(f"{status}: {body[:500]}")

    async def job(self, dashboard: Dashboard, submission_id: str) -> RayJob:
        """What Ray says about a submission."""
        try:
            status, body = await self._call("GET", dashboard, f"/api/jobs/{submission_id}", POLL_TIMEOUT)
        except RayUnavailableError:
            return UNKNOWN
        if status == 404 and submission_id in body:
            return RayJob("Missing")  # this is Ray's own answer; a 404 of a proxy does not name the id
        details = _json(body)
        state = _STATES.get(str(details.get("status")))
        if status >= 300 or state is None:
            return UNKNOWN
        return RayJob(state, str(details.get("message") or ""), _time(details.get("end_time")))

    async def progress(self, dashboard: Dashboard, head_ip: str) -> Progress | None:
        """The last report of the trainer; None: there is none, or the dashboard does not answer."""
        query = f"/api/v0/logs/file?node_ip={head_ip}&filename={RAY_LOG_FILE}&lines=1"
        try:
            status, body = await self._call("GET", dashboard, query, POLL_TIMEOUT)
        except RayUnavailableError:
            return None
        start = body.find("{")  # Ray puts a status character before the file's text
        if status >= 300 or start < 0:
            return None
        try:
            return Progress.model_validate_json(body[start:].strip())
        except ValidationError:
            return None

    async def _call(
        self, method: str, dashboard: Dashboard, path: str, limit: aiohttp.ClientTimeout, **body: Any
    ) -> tuple[int, str]:
        headers = {"x-ray-authorization": f"Bearer {dashboard.token}"}
        try:
            # no redirects: the user chose the image that answers, and no other server may get the credentials
            async with self._session.request(
                method, dashboard.url + path, headers=headers, timeout=limit, allow_redirects=False, **body
            ) as answer:
                return answer.status, await answer.text(errors="replace")
        except (TimeoutError, aiohttp.ClientError, OSError) as error:
            raise RayUnavailableError(f"the dashboard does not answer: {error!r}") from error


def _time(milliseconds: object) -> datetime | None:
    """Ray's times are milliseconds since 1970."""
    if not isinstance(milliseconds, int | float) or not 0 < milliseconds < MAX_MILLISECONDS:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _json(text: str) -> dict[str, Any]:
    try:
        value = aiohttp.typedefs.DEFAULT_JSON_DECODER(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
