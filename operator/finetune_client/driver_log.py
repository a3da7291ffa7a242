"""The output of a job's driver: read from the Ray dashboard, through the API server's proxy to services.

The dashboard asks for the job's token, which is in a Secret that the RayCluster names: whoever may read both may read the log.
When the cluster is gone, so is this log; `kept_log` reads what is left of the run on its output claim.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

from finetune_client.access import Access
from finetune_client.errors import (
    ForbiddenError,
    LogGoneError,
    MissingError,
    MissingKindError,
    NoLogError,
    UnreachableError,
    look_at,
)
from finetune_client.job import Job
from finetune_client.kube.rest import PATIENCE_SECONDS, Answer, Stop, part
from finetune_operator.api.phases import Phase
from finetune_operator.constants import DASHBOARD_PORT, RAY_GROUP, RAY_PLURAL, RAY_VERSION_API, TOKEN_SECRET_KEY

POLL_SECONDS = 2.0
"""Pause between two looks at a log that is followed."""

PATIENCE = 15
"""How many looks in a row may fail before the following ends: half a minute."""

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-Z\\^_])")
_CONTROLS = re.compile(r"[^\n\t\x20-\x7e\x85\xa0-\U0010ffff]")


Tell = Callable[[Job], None]
Say = Callable[[str], None]


@dataclass(frozen=True)
class _Attempt:
    """Where the log of an attempt is."""

    number: int
    cluster: str
    submission: str
    reason: str
    """How it has ended; empty: it has not."""


def read(client: Access, name: str, number: int | None, follow: Stop | None, tell: Tell, say: Say) -> Iterator[str]:
    """The log of an attempt, in pieces; see `FinetuneClient.logs`.

    Raises:
        NoLogError: there is none, or no more: of the attempt with the number, or of the last one of a job that has ended.
        UnreachableError: its dashboard does not answer any more.
    """
    job, last = client.get(name), 0
    if follow is None:
        yield _text(client, job, _find(job, number))
        return
    while True:
        attempt = _find(job, number) if number or job.has_ended or (job.status.attempt or 0) > last else None
        if attempt is not None and attempt.number > last:
            yield from _follow(client, job, attempt, _Follower(follow, tell, say, named=number is not None))
            last = attempt.number
        job = look_again(client, job, follow)
        if number or (job.has_ended and (job.status.attempt or 0) <= last):
            return
        if not job.has_ended:
            tell(job)
        if follow.wait(POLL_SECONDS):
            return


@dataclass(frozen=True)
class _Follower:
    """Who follows a log."""

    stop: Stop
    tell: Tell
    """Is told the job while there is no output yet."""
    say: Say
    """Is told that an end may be missing."""
    named: bool
    """Whether only this attempt is followed."""


def _follow(client: Access, job: Job, attempt: _Attempt, follower: _Follower) -> Iterator[str]:
    """The log of an attempt until it has ended; a cluster that starts, or is silent for a while, is waited for."""
    seen, failures = 0, 0
    while True:
        ended = has_ended(job, attempt.number)
        try:
            text, failures = _text(client, job, attempt), 0
        except (NoLogError, UnreachableError) as gone:
            failures += 1
            is_last = job.has_ended and (job.status.attempt or 0) <= attempt.number
            if is_last or (ended and follower.named) or (failures > PATIENCE and not ended and not _is_starting(job)):
                raise
            if ended:
                follower.say(lost_end(gone, job.name, attempt.number))
            text = ""
        if len(text) > seen:
            yield text[seen:]
            seen = len(text)
        if not seen and not ended:
            follower.tell(job)
        if ended or follower.stop.wait(POLL_SECONDS):
            return
        job = look_again(client, job, follower.stop)


def look_again(client: Access, job: Job, stop: Stop) -> Job:
    """The job as it is now, or as it was where the following is stopped; an API server that does not answer is asked again.

    Raises:
        UnreachableError: it has been silent for `PATIENCE_SECONDS`.
    """
    silent_since = monotonic()
    while not stop.is_set:
        try:
            return client.get(job.name)
        except UnreachableError:
            if monotonic() - silent_since > PATIENCE_SECONDS:
                raise
            stop.wait(POLL_SECONDS)
    return job


def lost_end(gone: NoLogError | UnreachableError, job: str, attempt: int | None) -> str:
    """That a log was cut off, and how all of it is read that is kept."""
    again = f"finetune logs {job}{f' --attempt {attempt}' if attempt else ''}"
    return f"{gone.message}: the end of this log may be missing; `{again}` prints all that is kept"


def has_ended(job: Job, attempt: int) -> bool:
    """Whether an attempt has ended, by its number."""
    known = {item.attempt for item in job.status.attempt_history}
    return job.has_ended or attempt in known or (job.status.attempt or 0) > attempt


def _is_starting(job: Job) -> bool:
    return job.phase in {Phase.PENDING, Phase.QUEUED, Phase.PROVISIONING, Phase.RETRYING}


def _find(job: Job, number: int | None) -> _Attempt:
    """An attempt by its number, or the current one.

    Raises:
        NoLogError: the job has no such attempt.
    """
    ended = {item.attempt: item for item in job.status.attempt_history}
    current = job.status.attempt
    number = number or current
    if number is not None and number in ended:
        item = ended[number]
        return _Attempt(number, item.cluster, item.submission_id, item.reason)
    if number is not None and number == current and job.status.ray:
        return _Attempt(number, job.status.ray.cluster, job.status.ray.submission_id, "")
    if number is None or current is None:
        raise NoLogError(
            f"{job} has not run yet ({job.state})",
            look_at(job.name),
        )
    known = ", ".join(str(item) for item in sorted({*ended, current}))
    raise NoLogError(f"{job} has no attempt {number} that is still known", f"its attempts are: {known}")


@dataclass(frozen=True)
class Dashboard:
    """The Ray dashboard of an attempt, behind the API server."""

    path: str
    headers: Mapping[str, str] = field(repr=False)


def reach(client: Access, job: Job) -> Dashboard:
    """The dashboard of the current attempt, which answers.

    Raises:
        NoLogError: it is not there (any more).
        ForbiddenError: the user may not reach it.
        UnreachableError: it does not answer.
    """
    attempt = _find(job, None)
    dashboard = _dashboard(client, job, attempt)
    answer = client.rest.ask("GET", f"{dashboard.path}/api/version", headers=dashboard.headers)
    if answer.status != 200:
        raise _no_log(job, attempt, answer)
    return dashboard


def _dashboard(client: Access, job: Job, attempt: _Attempt) -> Dashboard:
    namespace = f"namespaces/{part(job.namespace)}"
    token = _token(client, job, attempt, namespace)
    service = f"{part(attempt.cluster)}-head-svc:{DASHBOARD_PORT}"
    # the token does not go into Authorization, which is the API server's
    return Dashboard(f"/api/v1/{namespace}/services/{service}/proxy", {"x-ray-authorization": f"Bearer {token}"})


def _text(client: Access, job: Job, attempt: _Attempt) -> str:
    dashboard = _dashboard(client, job, attempt)
    path = f"{dashboard.path}/api/jobs/{part(attempt.submission)}/logs"
    answer = client.rest.ask("GET", path, headers=dashboard.headers)
    text = _log_of(answer)
    if text is None:
        raise _no_log(job, attempt, answer)
    return printable(text)


def _token(client: Access, job: Job, attempt: _Attempt, namespace: str) -> str:
    try:
        path = f"/apis/{RAY_GROUP}/{RAY_VERSION_API}/{namespace}/{RAY_PLURAL}/{part(attempt.cluster)}"
        cluster = client.rest.get(path)
        secret = str(Job(cluster).read("spec", "authOptions", "secretName") or "")
        data = Job(client.rest.get(f"/api/v1/{namespace}/secrets/{part(secret)}")).read("data", TOKEN_SECRET_KEY)
        return base64.b64decode(str(data)).decode()
    except ForbiddenError as error:
        hint = "logs need the rights to get rayclusters, secrets and services/proxy; `finetune doctor` shows who has them"
        raise ForbiddenError(error.status, error.message, hint) from error
    except MissingKindError as error:
        hint = "install KubeRay 1.6 or later; `finetune doctor` shows what else is missing"
        raise NoLogError(
            f"the cluster at {client.server} does not know RayClusters: KubeRay is not installed there", hint
        ) from error
    except MissingError as error:
        raise _gone(job, attempt) from error
    except ValueError as error:
        raise NoLogError(f"the Secret {secret} has no token of the Ray dashboard", look_at(job.name)) from error


def _log_of(answer: Answer) -> str | None:
    try:
        told: Any = json.loads(answer.body) if answer.status < 300 else None
    except (ValueError, RecursionError):
        return None
    text = told.get("logs") if isinstance(told, dict) else None
    return text if isinstance(text, str) else None


def _no_log(job: Job, attempt: _Attempt, answer: Answer) -> Exception:
    """Why the dashboard, or the API server in its place, has given no log."""
    said = answer.body[:1000].decode(errors="replace")
    if answer.status == 403 and '"kind":"Status"' in said.replace(" ", ""):
        hint = f"logs need the right to get services/proxy in namespace {job.namespace}; ask the cluster's administrator"
        return ForbiddenError(403, f"you may not reach the Ray dashboard of {job} through the API server", hint, said)
    if answer.status == 404 and attempt.submission in said:
        return NoLogError(f"Ray has not got the driver of {job} yet", look_at(job.name), said)
    message = f"the Ray dashboard of {job} does not answer ({answer.status})"
    head = f"ray.io/cluster={attempt.cluster},ray.io/node-type=head"
    hint = f"look at the head pod: kubectl logs -n {job.namespace} -l {head}"
    return UnreachableError(message, hint, said) if answer.status >= 500 else NoLogError(message, hint, said)


def _gone(job: Job, attempt: _Attempt) -> NoLogError:
    """The Ray cluster is not there: not yet, while the job waits, or not any more."""
    if not attempt.reason and not job.has_ended and job.phase in {Phase.PENDING, Phase.QUEUED}:
        return NoLogError(f"{job} has no Ray cluster yet ({job.state})", look_at(job.name))
    message = f"the Ray cluster of attempt {attempt.number} of {job} is gone"
    output, details = job.status.output, job.message if job.phase is Phase.FAILED else ""
    if output is None:
        return NoLogError(message, look_at(job.name), details)
    hint = f"report.html and logs/ of the run are in {output.path} on the claim {output.persistent_volume_claim}"
    return LogGoneError(attempt.number, message, hint, details)


def printable(text: str) -> str:
    """A text of others without what steers a terminal; progress bars that overwrite a line become lines."""
    text = _ESCAPES.sub("", text.replace("\r\n", "\n")).replace("\r", "\n")
    return _CONTROLS.sub("", text)
