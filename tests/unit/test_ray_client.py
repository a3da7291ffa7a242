"""The Ray client on the wire: a poll that fails is Unknown, and a submission happens once."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from tests.support.builders import NOW, UID, begun, make_job, make_observed, make_progress, raw_progress
from tests.support.http_server import Canned, running

from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import Phase, dump
from finetune_operator.clients.bounded import bounded_session
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.decide import decide
from finetune_operator.desired.submission import build_submission
from finetune_operator.errors import RayError, RayUnavailableError
from finetune_operator.observed import UNKNOWN, RayJob

pytestmark = pytest.mark.sampled(4)

ID = f"{UID}-a1"
SUBMISSION = build_submission(make_job(), 1)
HEAD_IP = "10.88.0.12"


@asynccontextmanager
async def asking(server: Canned) -> AsyncIterator[tuple[RayClient, Dashboard]]:
    async with running(server) as url, bounded_session() as session:
        yield RayClient(session), Dashboard(url + "/proxy", "token-1")


async def poll(server: Canned) -> RayJob:
    async with asking(server) as (ray, dashboard):
        return await ray.job(dashboard, ID)


async def submit(server: Canned) -> None:
    async with asking(server) as (ray, dashboard):
        await ray.submit(dashboard, SUBMISSION)


async def progress(server: Canned) -> Any:
    async with asking(server) as (ray, dashboard):
        return await ray.progress(dashboard, HEAD_IP)


async def test_no_redirect_takes_the_token_elsewhere() -> None:
    server = Canned(status=307, headers={"Location": "/elsewhere"})
    assert await poll(server) == UNKNOWN
    assert [seen.path for seen in server.seen] == [f"/proxy/api/jobs/{ID}"]


async def test_a_submission_carries_id_entry_point_and_token() -> None:
    server = Canned(body=json.dumps({"submission_id": ID}))
    await submit(server)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", "/proxy/api/jobs/")
    assert seen.headers["x-ray-authorization"] == "Bearer token-1"
    assert "Authorization" not in seen.headers
    assert json.loads(seen.text) == SUBMISSION
    assert json.loads(seen.text)["submission_id"] == ID


@pytest.mark.parametrize("status", [400, 500])
async def test_an_id_that_ray_knows_already_is_a_success(status: int) -> None:
    text = f"Traceback …\nException: Job with submission_id {ID} already exists. Please use a different submission_id.\n"
    await submit(Canned(status, text))


@pytest.mark.parametrize("status", [400, 500])
async def test_a_submission_that_ray_refuses_is_told_in_its_words(status: int) -> None:
    with pytest.raises(RayError, match="No available agent") as error:
        await submit(Canned(status, "No available agent to submit job, please try again later."))
    assert not isinstance(error.value, RayUnavailableError)


@pytest.mark.parametrize(
    "server", [Canned(401), Canned(403), Canned(502), Canned(503, "no endpoints available"), Canned(504), Canned(reset=True)]
)
async def test_a_submission_without_an_answer_of_ray_has_an_unknown_outcome(server: Canned) -> None:
    with pytest.raises(RayUnavailableError):
        await submit(server)


@pytest.mark.parametrize("state", ["PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED"])
async def test_a_poll_tells_the_state_in_rays_words(state: str) -> None:
    server = Canned(body=json.dumps({"submission_id": ID, "status": state, "message": "words"}))
    assert await poll(server) == RayJob(state, "words")  # type: ignore[arg-type]
    assert server.seen[0].path == f"/proxy/api/jobs/{ID}"
    assert server.seen[0].headers["x-ray-authorization"] == "Bearer token-1"


async def test_a_job_without_a_message_has_none() -> None:
    assert await poll(Canned(body='{"status": "FAILED", "message": null}')) == RayJob("FAILED", "")


async def test_only_rays_own_word_makes_a_job_missing() -> None:
    assert await poll(Canned(404, f"Job {ID} does not exist")) == RayJob("Missing")


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(Canned(404, 'services "demo-1f0c3-1-head-svc" not found'), id="404 of the API server's proxy"),
        pytest.param(Canned(404, "404: Not Found"), id="404 of something else on that address"),
        pytest.param(Canned(401, "Unauthorized: Missing authentication token"), id="401"),
        pytest.param(Canned(500, f"Traceback … {ID}"), id="500"),
        pytest.param(Canned(502, "<html>Bad Gateway"), id="502"),
        pytest.param(Canned(503, "no endpoints available for service"), id="503"),
        pytest.param(Canned(reset=True), id="reset"),
        pytest.param(Canned(200, ""), id="empty"),
        pytest.param(Canned(200, "<html>"), id="HTML"),
        pytest.param(Canned(200, "[]"), id="a list"),
        pytest.param(Canned(200, "{}"), id="no state"),
        pytest.param(Canned(200, '{"status": "DREAMING"}'), id="a new state"),
        pytest.param(Canned(200, '{"status": null}'), id="a null state"),
        pytest.param(Canned(200, '{"status": ["RUNNING"]}'), id="a list of states"),
        pytest.param(Canned(503, '{"status": "FAILED"}'), id="a state in a refusal"),
    ],
)
async def test_any_other_answer_is_unknown(server: Canned) -> None:
    assert await poll(server) == UNKNOWN


async def test_a_dashboard_that_never_answers_is_unknown_within_seconds() -> None:
    server = Canned(silent=True)
    async with asking(server) as (ray, dashboard):
        assert (await ray.job(dashboard, ID)).cause == "no answer within 5 s"


@pytest.mark.parametrize(
    ("server", "cause"),
    [
        (Canned(401, "Unauthorized"), "it refuses the operator's token (401): Unauthorized"),
        (Canned(reset=True), "the connection was closed before an answer came"),
        (Canned(502, "<html>Bad Gateway"), "it gives status 502 and not Ray's answer: <html>Bad Gateway"),
        (Canned(200, "{}"), "it gives status 200 and not Ray's answer: {}"),
    ],
)
async def test_what_is_unknown_has_its_cause(server: Canned, cause: str) -> None:
    assert (await poll(server)).cause == cause


async def test_a_name_that_cannot_be_resolved_is_named() -> None:
    async with bounded_session() as session:
        found = await RayClient(session).job(Dashboard("http://demo-head-svc.team.svc.invalid:8265", "t"), ID)
    assert found.cause == "the name demo-head-svc.team.svc.invalid cannot be resolved"


async def test_nobody_listening_is_unknown() -> None:
    async with running(Canned()) as url:
        pass
    async with bounded_session() as session:
        ray, dashboard = RayClient(session), Dashboard(url, "t")
        assert (await ray.job(dashboard, ID)).cause == "no connection: Connection refused"
        assert await ray.progress(dashboard, HEAD_IP) is None
        with pytest.raises(RayUnavailableError):
            await ray.submit(dashboard, SUBMISSION)


@pytest.mark.parametrize("prefix", ["1", "", "\x01"])
async def test_a_report_is_read_behind_rays_status_byte(prefix: str) -> None:
    server = Canned(body=prefix + json.dumps(raw_progress()) + "\n")
    report = await progress(server)
    assert (report.step, report.percent, report.world.hosts) == (10, 50, ("pod-a", "pod-b"))
    assert server.seen[0].path == "/proxy/api/v0/logs/file"
    assert server.seen[0].query == {"node_ip": HEAD_IP, "filename": "finetune-progress.json", "lines": "1"}
    assert server.seen[0].headers["x-ray-authorization"] == "Bearer token-1"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, ""), (200, "1"), (200, "0Failed to read"), (200, '1{"step": 1'), (200, '1{"step": 1}'), (200, "1{}"),
        (200, '1{"step": "many", "lastReportTime": "2026-01-01T00:00:00Z"}'), (200, "1[{}]"),
        (404, json.dumps(raw_progress())), (500, json.dumps(raw_progress())), (401, ""),
    ],
)  # fmt: skip
async def test_what_is_no_report_is_none(status: int, body: str) -> None:
    assert await progress(Canned(status, body)) is None


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"loss": float("nan")}, id="loss is not a number"),
        pytest.param({"evalLoss": float("inf")}, id="loss is infinite"),
        pytest.param({"learningRate": float("nan")}, id="learning rate"),
        pytest.param({"epoch": float("nan")}, id="epoch"),
        pytest.param({"percent": 10**9}, id="percent does not fit its column"),
        pytest.param({"step": 10**30}, id="step beyond 64 bits"),
        pytest.param({"lastReportTime": "2026-01-02T03:04:09"}, id="time without zone"),
        pytest.param({"world": {"size": 1, "hosts": ["h" * 1000]}}, id="a host name too long"),
        pytest.param({"world": {"size": 1, "backend": "b" * 1000}}, id="a backend too long"),
        pytest.param({"result": {"perplexity": float("inf")}}, id="perplexity is infinite"),
        pytest.param(
            {"output": {"format": "full-model", "path": "p", "files": 1, "sizeBytes": 1, "manifestSha256": "s" * 99}}, id="sum"
        ),
        pytest.param({"failure": {"reason": "Whatever", "message": "x"}}, id="a reason that is none"),
    ],
)
async def test_no_report_of_any_image_can_stop_the_operator(changes: dict[str, Any]) -> None:
    """The user chooses the image. A report that the status cannot hold must be left out or cut."""
    report = await progress(Canned(body="1" + json.dumps(raw_progress(**changes))))
    started = begun(Phase.RUNNING, submitted=True)
    first = decide(make_job(status=started), make_observed("RUNNING", progress=make_progress()), NOW).status
    states: tuple[Any, ...] = ("RUNNING", "SUCCEEDED", "FAILED")
    for status, state in itertools.product((started, first), states):
        plan = decide(make_job(status=status), make_observed(state, progress=report), NOW)
        written = json.loads(json.dumps(dump(plan.status), allow_nan=False))
        assert list(violations(crd_schema()["properties"]["status"], written, ("status",))) == []


def test_a_dashboard_is_reached_by_its_service_or_by_the_proxy() -> None:
    service = Dashboard.by_service("team", "demo-1f0c3-1", "t")
    proxy = Dashboard.by_proxy("https://api:6443", "team", "demo-1f0c3-1", "t")
    assert service.url == "http://demo-1f0c3-1-head-svc.team.svc.cluster.local:8265"
    elsewhere = Dashboard.by_service("team", "demo-1f0c3-1", "t", "k8s.example")
    assert elsewhere.url == "http://demo-1f0c3-1-head-svc.team.svc.k8s.example:8265"
    assert proxy.url == "https://api:6443/api/v1/namespaces/team/services/demo-1f0c3-1-head-svc:8265/proxy"
