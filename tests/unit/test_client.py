"""`FinetuneClient` and `AsyncFinetuneClient`: what they ask an API server for, and what they make of its answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.support.builders import NAMESPACE, raw_job
from tests.support.http_server import Canned, running, until
from tests.support.shell import CLUSTER, SUBMISSION, Shell, login, shell_at

from finetune_client import AsyncFinetuneClient, FinetuneClient, Job
from finetune_client.errors import (
    ClientError,
    ExistsError,
    ForbiddenError,
    JobEndedError,
    MissingError,
    NoLogError,
    NotInTimeError,
    UnreachableError,
)
from finetune_operator.api.v1alpha1 import FinetuneJob, Phase
from finetune_trainer.errors import ConfigError

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
CONFIG: Object = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}}
RUNNING: Object = {"attempt": 1, "ray": {"cluster": CLUSTER, "submissionId": SUBMISSION}}


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        yield shell


@pytest.fixture
def client(shell: Shell) -> AsyncFinetuneClient:
    return AsyncFinetuneClient()


async def collect(seen: list[str], items: AsyncIterator[Any], words: Callable[[Any], str]) -> None:
    async for item in items:
        seen.append(words(item))  # noqa: PERF401 - as they come


def manifest(name: str = "new") -> Object:
    job = raw_job()
    return {"apiVersion": job["apiVersion"], "kind": job["kind"], "metadata": {"name": name}, "spec": job["spec"]}


async def test_a_manifest_is_created_as_it_is_with_the_values_that_are_set(shell: Shell, client: AsyncFinetuneClient) -> None:
    settings = {"Training.epochs": 7, "output.size": "20Gi", "metadata.labels.team": "nlp"}
    job = await client.submit(manifest(), settings=settings)
    assert (job.name, job.namespace, job.phase) == ("new", NAMESPACE, Phase.PENDING)
    (write,) = shell.kube.writes()
    sent = json.loads(write.text)
    assert sent["spec"]["config"]["Training"]["epochs"] == 7
    assert sent["spec"]["output"] == manifest()["spec"]["output"] | {"size": "20Gi"}
    assert sent["metadata"] == {"name": "new", "namespace": NAMESPACE, "labels": {"team": "nlp"}}
    assert (write.query["fieldManager"], write.query["fieldValidation"]) == ("finetune", "Strict")
    assert job.spec.config.training.epochs == 7


async def test_a_finetuning_yaml_and_models_are_submitted_too(shell: Shell, client: AsyncFinetuneClient, tmp_path: Path) -> None:
    file = tmp_path / "my_run.yaml"
    file.write_text("General: {base_model: gpt2}\nDataset: {train_file: rows.jsonl}\nTraining: {mixed_precision: no}\n")
    assert (await client.submit(file)).name == "my-run"
    assert shell.job("my-run")["spec"]["config"]["Training"]["mixed_precision"] == "no"
    assert (await client.submit(CONFIG, name="bare")).spec.config.general.base_model == "gpt2"
    model = FinetuneJob.model_validate(raw_job())
    assert (await client.submit(model, name="model")).spec == model.spec
    assert (await client.submit(model.spec, name="spec")).spec == model.spec


@pytest.mark.parametrize(
    ("job", "settings", "words"),
    [
        (manifest(), {"Training.epoch": 1}, "unknown field; did you mean epochs? (set by Training.epoch)"),
        (manifest(), {"Training.epochs": "x"}, "(set by Training.epochs)"),
        (manifest("Not_a_name"), {}, "metadata.name"),
        (manifest() | {"kind": "Pod"}, {}, "kind: must be FinetuneJob"),
        (manifest() | {"metadata": {"name": "a", "namespace": "other"}}, {}, "say -n other"),
        ({"metadata": 3}, {}, "apiVersion"),
    ],
)
async def test_what_is_wrong_is_never_sent(
    shell: Shell, client: AsyncFinetuneClient, job: Object, settings: Object, words: str
) -> None:
    with pytest.raises(ConfigError) as error:
        await client.submit(job, settings=settings)
    assert words in str(error.value)
    assert shell.writes() == []


async def test_a_second_job_of_a_name_and_a_dry_run_change_nothing(shell: Shell, client: AsyncFinetuneClient) -> None:
    before = shell.add("new", phase="Running")
    with pytest.raises(ExistsError):
        await client.submit(manifest())
    assert shell.job("new") == before
    assert (await client.submit(manifest("other"), dry_run=True)).name == "other"
    assert shell.kube.get("finetunejobs", (NAMESPACE, "other")) is None


async def test_jobs_are_listed_page_by_page(shell: Shell, client: AsyncFinetuneClient) -> None:
    names = [f"job-{number:04}" for number in range(501)]
    for name in names:
        shell.add(name, phase="Running", metadata={"uid": name})
    assert [job.name for job in await client.list()] == names
    lists = [seen for seen in shell.kube.requests if seen.path.endswith("/finetunejobs")]
    assert ["continue" in seen.query for seen in lists] == [False, True]


async def test_a_wait_ends_with_the_job(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running")
    waiting = asyncio.create_task(client.wait("demo", timeout=30))
    await until(lambda: shell.cluster.watches, "it watches")
    shell.add("other", phase="Failed", metadata={"uid": "other"})
    shell.add(phase="Succeeded")
    job = await waiting
    assert (job.name, job.phase, job.status.phase) == ("demo", Phase.SUCCEEDED, Phase.SUCCEEDED)
    assert shell.cluster.watches[0][1]["fieldSelector"] == "metadata.name=demo"


async def test_a_wait_may_be_for_something_else(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Pending")
    waiting = asyncio.create_task(client.wait("demo", until=lambda job: job.phase is Phase.RUNNING))
    await until(lambda: shell.cluster.watches, "it watches")
    shell.add(phase="Provisioning")
    shell.add(phase="Running")
    assert (await waiting).phase is Phase.RUNNING


async def test_a_wait_has_an_end(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running", status={"reason": "TrainingRunning"})
    with pytest.raises(NotInTimeError, match="is still Running, TrainingRunning after"):
        await client.wait("demo", timeout=0.2)
    shell.add(phase="Failed")
    assert (await client.wait("demo", timeout=0)).phase is Phase.FAILED


async def test_a_wait_for_a_job_that_goes_is_over(shell: Shell, client: AsyncFinetuneClient) -> None:
    with pytest.raises(MissingError, match="there is no finetunejob/demo"):
        await client.wait("demo")
    shell.add(phase="Running")
    waiting = asyncio.create_task(client.wait("demo"))
    await until(lambda: shell.cluster.watches, "it watches")
    shell.kube.remove("finetunejobs", (NAMESPACE, "demo"))
    with pytest.raises(MissingError, match="was deleted while it was waited for"):
        await waiting


async def test_a_watch_goes_on_after_it_was_cut_off(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Pending")
    seen: list[str] = []

    async def follow() -> None:
        async for change in client.watch():
            seen.append(f"{change.kind} {change.job.name} {change.job.phase}")
            if change.kind == "DELETED":
                return

    following = asyncio.create_task(follow())
    for number, phase in enumerate(("Provisioning", "Running", "Failed"), start=1):
        await until(lambda number=number: len(shell.cluster.watches) == number, "it watches")
        await shell.cluster.cut()
        shell.add(phase=phase)
        await until(lambda phase=phase: seen[-1].endswith(phase), f"{phase} is seen")
    shell.kube.remove("finetunejobs", (NAMESPACE, "demo"))
    await asyncio.wait_for(following, 30)
    told = [f"MODIFIED demo {phase}" for phase in ("Provisioning", "Running", "Failed")]
    assert seen == ["ADDED demo Pending", *told, "DELETED demo Failed"]
    versions = [int(query["resourceVersion"]) for _, query in shell.cluster.watches]
    assert versions == sorted(versions)


async def test_a_watch_that_is_too_old_begins_again_with_what_has_changed(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add("kept", phase="Running", metadata={"uid": "kept"})
    shell.add("gone", phase="Running", metadata={"uid": "gone"})
    seen: list[str] = []

    following = asyncio.create_task(collect(seen, client.watch(), lambda change: f"{change.kind} {change.job.name}"))
    await until(lambda: shell.cluster.watches, "it watches")
    shell.cluster.expired_watches = 1
    shell.kube.objects["finetunejobs"].pop((NAMESPACE, "gone"))  # the watch is not told
    shell.add("new", phase="Pending", metadata={"uid": "new"})
    await shell.cluster.cut()
    await until(lambda: len(seen) >= 4, "the changes are seen")
    following.cancel()
    assert sorted(seen[:2]) == ["ADDED gone", "ADDED kept"]
    assert sorted(set(seen[2:])) == ["ADDED new", "DELETED gone"]


async def test_an_api_server_that_ends_each_watch_is_not_hammered(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running")
    shell.cluster.dropped_watches = 1000
    begun = monotonic()
    waiting = asyncio.create_task(client.wait("demo"))
    await until(lambda: sum("watch" in seen.query for seen in shell.cluster.seen) >= 4, "it watches again and again")
    assert monotonic() - begun >= 1.9
    waiting.cancel()


async def test_a_cancelled_task_stops_watching_at_once(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running")
    waiting = asyncio.create_task(client.wait("demo"))
    await until(lambda: shell.cluster.watches, "it watches")
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await asyncio.wait_for(asyncio.get_running_loop().shutdown_default_executor(), 20)


async def test_the_log_is_read_with_the_jobs_token_and_nobody_elses(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running", status=RUNNING)
    shell.cluster.start_ray(log="one\x1b[31m red\x1b[0m\rtwo\x07\n")
    assert [text async for text in client.logs("demo")] == ["one red\ntwo\n"]
    (request,) = shell.cluster.ray.requests
    assert request.path == f"/{NAMESPACE}/{CLUSTER}/api/jobs/{SUBMISSION}/logs"


async def test_a_log_is_followed_until_the_job_has_ended(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Provisioning", status=RUNNING)
    seen: list[str] = []

    following = asyncio.create_task(collect(seen, client.logs("demo", follow=True), str))
    await until(lambda: any("rayclusters" in request.path for request in shell.cluster.seen), "it looks for the cluster")
    shell.cluster.start_ray(log="one\n")
    await until(lambda: seen == ["one\n"], "the first line")
    shell.cluster.ray.heads[CLUSTER].logs[SUBMISSION] += "two\n"
    shell.add(phase="Succeeded", status=RUNNING)
    await asyncio.wait_for(following, 30)
    assert seen == ["one\n", "two\n"]


@pytest.mark.parametrize(
    ("denied", "words"),
    [
        ("get secrets", "logs need the rights to get rayclusters, secrets and services/proxy"),
        ("get rayclusters", "logs need the rights to get rayclusters, secrets and services/proxy"),
        ("get services/proxy", "logs need the right to get services/proxy in namespace team"),
    ],
)
async def test_a_right_that_logs_need_is_named(shell: Shell, client: AsyncFinetuneClient, denied: str, words: str) -> None:
    shell.add(phase="Running", status=RUNNING)
    shell.cluster.start_ray(log="x")
    shell.cluster.denied.add(denied)
    with pytest.raises(ForbiddenError) as error:
        [text async for text in client.logs("demo")]
    assert words in error.value.hint


async def test_a_log_that_is_not_there_is_told_with_where_else_to_look(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running", status=RUNNING)
    shell.cluster.start_ray()
    with pytest.raises(NoLogError, match="Ray has not got the driver"):
        [text async for text in client.logs("demo")]
    with pytest.raises(NoLogError, match="has no attempt 7") as error:
        [text async for text in client.logs("demo", attempt=7)]
    assert error.value.hint == "its attempts are: 1"
    shell.cluster.ray.heads[CLUSTER].down = True
    with pytest.raises(ClientError):
        [text async for text in client.logs("demo")]


@pytest.mark.parametrize(
    ("canned", "words"),
    [
        (Canned(body="<html>please log in</html>"), "answers with a web page (200)"),
        (Canned(body="[1]"), "does not answer as an API server of Kubernetes does"),
        (Canned(body="[" * 100_000), "does not answer as an API server of Kubernetes does"),
        (Canned(status=302, body="", headers={"Location": "http://127.0.0.1:1/"}), "does not answer as an API server"),
        (Canned(status=503, body="busy"), "cannot serve this now (503): busy"),
        (Canned(reset=True), "the connection was closed before the whole answer came"),
        (Canned(silent=True), "it took too long"),
        (Canned(status=418, body="x"), "the API server says: x"),
    ],
    ids=["page", "list", "deep", "redirect", "busy", "reset", "silent", "teapot"],
)
async def test_whatever_a_server_answers_is_an_error_in_words(tmp_path: Path, canned: Canned, words: str) -> None:
    async with running(canned) as url:
        client = FinetuneClient(kubeconfig=str(login(tmp_path, url)), timeout=0.5)
        with pytest.raises(ClientError) as error:
            await asyncio.to_thread(client.list)
    assert words in error.value.message
    assert len(canned.seen) == 1


async def test_a_slow_answer_has_an_end(tmp_path: Path) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n")
        try:
            for _ in range(1000):
                writer.write(b" ")
                await writer.drain()
                await asyncio.wait_for(asyncio.Event().wait(), 0.05)
        except TimeoutError:
            pass

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while not writer.is_closing():
            await drip(reader, writer)

    server = await asyncio.start_server(endless, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        client = FinetuneClient(kubeconfig=str(login(tmp_path, f"http://127.0.0.1:{port}")), timeout=0.5)
        with pytest.raises(UnreachableError, match="took too long"):
            await asyncio.wait_for(asyncio.to_thread(client.list), 20)


@pytest.mark.parametrize(
    "raw",
    [{}, {"metadata": 1, "status": []}, {"metadata": {"name": 3}, "status": {"phase": "Odd", "progress": "x", "attempt": {}}}],
)
def test_a_job_of_any_shape_can_be_looked_at(raw: Object) -> None:
    job = Job(raw)
    assert job.phase is Phase.PENDING
    assert (job.reason, job.message, job.has_ended, job.created) == ("", "", False, None)
    assert job.number("status", "progress", "percent") is None


async def test_commands_have_their_methods(shell: Shell, client: AsyncFinetuneClient) -> None:
    shell.add(phase="Running")
    await client.suspend("demo")
    await client.resume("demo")
    await client.cancel("demo")
    assert shell.job()["spec"]["cancel"] is True
    assert (await client.status("demo")).phase is Phase.RUNNING
    shell.add(phase="Failed")
    with pytest.raises(JobEndedError):
        await client.suspend("demo")
    assert (await client.retry("demo")).name == "demo-r1"
