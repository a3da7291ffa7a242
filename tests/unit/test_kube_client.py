"""The Kubernetes client on the wire: what it sends, and what it makes of each answer."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.aio import client
from tests.support.builders import NAMESPACE, make_job, raw_job
from tests.support.fake_kube import FakeKube
from tests.support.http_server import Canned, running

from finetune_operator.clients.kube import (
    CLAIMS,
    FINETUNE_JOBS,
    NODES,
    PAGE_SIZE,
    PRIORITY_CLASSES,
    RAY_CLUSTERS,
    SECRETS,
    KubeClient,
)
from finetune_operator.errors import ConflictError, KindMissingError, KubeError, KubeUnavailableError

pytestmark = pytest.mark.sampled(4)

Call = Callable[[KubeClient], Any]
MANIFEST = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s", "namespace": NAMESPACE}, "data": {}}
CALLS: dict[str, Call] = {
    "get": lambda kube: kube.get(RAY_CLUSTERS, NAMESPACE, "c"),
    "list": lambda kube: kube.list(RAY_CLUSTERS, NAMESPACE),
    "create": lambda kube: kube.create(MANIFEST),
    "delete": lambda kube: kube.delete(RAY_CLUSTERS, NAMESPACE, "c", "uid-1"),
    "patch_status": lambda kube: kube.patch_status(NAMESPACE, "demo", "7", {"phase": "Running"}),
}


@asynccontextmanager
async def connected(handler: Any, token: str | None = None) -> AsyncIterator[KubeClient]:
    async with running(handler) as url:
        options = client.Configuration(host=url)
        if token:
            options.api_key = {"BearerToken": token}
            options.api_key_prefix = {"BearerToken": "Bearer"}
        kube = KubeClient(client.ApiClient(options))
        try:
            yield kube
        finally:
            await kube.close()


def refusal(status: int, reason: str, message: str = "words", name: str = "c") -> Canned:
    body = {"kind": "Status", "status": "Failure", "reason": reason, "message": message, "details": {"name": name}}
    return Canned(status, json.dumps(body))


@pytest.mark.parametrize("call", ["get", "delete", "patch_status"])
async def test_an_object_that_is_not_there_is_an_outcome(call: str) -> None:
    async with connected(refusal(404, "NotFound")) as kube:
        assert await CALLS[call](kube) is None


@pytest.mark.parametrize("call", CALLS)
async def test_a_kind_that_is_not_installed_is_an_error_of_its_own(call: str) -> None:
    async with connected(Canned(404, "404 page not found\n")) as kube:
        with pytest.raises(KindMissingError):
            await CALLS[call](kube)


async def test_creating_what_exists_is_an_outcome() -> None:
    async with connected(refusal(409, "AlreadyExists", 'secrets "s" already exists')) as kube:
        assert await kube.create(MANIFEST) is None


@pytest.mark.parametrize("call", ["create", "patch_status"])
async def test_a_conflict_is_an_error_of_its_own(call: str) -> None:
    async with connected(refusal(409, "Conflict", "the object has been modified")) as kube:
        with pytest.raises(ConflictError, match="the object has been modified"):
            await CALLS[call](kube)


async def test_deleting_an_object_whose_name_another_has_taken_does_nothing() -> None:
    async with connected(refusal(409, "Conflict", "precondition failed: UID in precondition")) as kube:
        assert await CALLS["delete"](kube) is None


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "server",
    [
        pytest.param(lambda: refusal(429, "TooManyRequests"), id="429"),
        pytest.param(lambda: refusal(500, "InternalError"), id="500"),
        pytest.param(lambda: Canned(503, "upstream connect error"), id="503 of a load balancer"),
        pytest.param(lambda: Canned(504, ""), id="504 without body"),
        pytest.param(lambda: Canned(reset=True), id="connection reset"),
    ],
)
async def test_an_answer_that_says_nothing_about_the_outcome_is_unavailable(call: str, server: Callable[[], Canned]) -> None:
    async with connected(server()) as kube:
        with pytest.raises(KubeUnavailableError):
            await CALLS[call](kube)


@pytest.mark.parametrize("call", CALLS)
async def test_a_server_that_is_not_there_is_unavailable(call: str) -> None:
    async with running(Canned()) as url:
        pass
    kube = KubeClient(client.ApiClient(client.Configuration(host=url)))
    with pytest.raises(KubeUnavailableError):
        await CALLS[call](kube)
    await kube.close()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(("status", "reason"), [(400, "BadRequest"), (401, "Unauthorized"), (403, "Forbidden"), (422, "Invalid")])
async def test_any_other_refusal_keeps_status_and_words(call: str, status: int, reason: str) -> None:
    words = 'pods "x" is forbidden: exceeded quota: team'
    async with connected(refusal(status, reason, words)) as kube:
        with pytest.raises(KubeError) as error:
            await CALLS[call](kube)
    assert type(error.value) is KubeError
    assert (error.value.status, error.value.message) == (status, words)


@pytest.mark.parametrize("body", ["", "<html>", "[]", '"text"', "null", '{"message": null}', '{"details": null}', "\x00"])
async def test_a_refusal_in_any_form_is_a_kube_error(body: str) -> None:
    server = Canned(body=body)
    async with connected(server) as kube:
        for server.status in (400, 403, 404, 409, 500):
            with pytest.raises(KubeError):
                await kube.create(MANIFEST)


async def test_a_status_is_merge_patched_with_its_version_and_strict_validation() -> None:
    server = Canned()
    async with connected(server) as kube:
        await CALLS["patch_status"](kube)
    (seen,) = server.seen
    assert seen.method == "PATCH"
    assert seen.path == f"/apis/llmonray.dev/v1alpha1/namespaces/{NAMESPACE}/finetunejobs/demo/status"
    assert seen.headers["Content-Type"] == "application/merge-patch+json"
    assert seen.query == {"fieldManager": "finetune-operator", "fieldValidation": "Strict"}
    assert json.loads(seen.text) == {"metadata": {"resourceVersion": "7"}, "status": {"phase": "Running"}}


async def test_a_patch_may_take_fields_away() -> None:
    server = Canned()
    async with connected(server) as kube:
        await kube.patch_status(NAMESPACE, "demo", "7", {"message": None, "ray": {"dashboardURL": None}})
    assert json.loads(server.seen[0].text)["status"] == {"message": None, "ray": {"dashboardURL": None}}


async def test_a_delete_is_about_one_uid() -> None:
    server = Canned()
    async with connected(server) as kube:
        await CALLS["delete"](kube)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("DELETE", f"/apis/ray.io/v1/namespaces/{NAMESPACE}/rayclusters/c")
    options = json.loads(seen.text)
    assert options["preconditions"] == {"uid": "uid-1"}
    assert options["propagationPolicy"] == "Background"


async def test_a_create_is_strict_and_names_its_manager() -> None:
    server = Canned()
    async with connected(server) as kube:
        await kube.create(MANIFEST)
    (seen,) = server.seen
    assert (seen.method, seen.path) == ("POST", f"/api/v1/namespaces/{NAMESPACE}/secrets")
    assert seen.query == {"fieldManager": "finetune-operator", "fieldValidation": "Strict"}
    assert json.loads(seen.text) == MANIFEST


async def test_the_service_accounts_token_is_sent() -> None:
    server = Canned()
    async with connected(server, token="abc") as kube:
        await kube.get(SECRETS, NAMESPACE, "s")
    assert server.seen[0].headers["Authorization"] == "Bearer abc"


async def test_objects_of_the_whole_cluster_have_no_namespace_in_their_path() -> None:
    server = FakeKube()
    server.put("nodes", {"metadata": {"name": "n"}})
    server.put("priorityclasses", {"metadata": {"name": "high"}})
    async with connected(server) as kube:
        assert [raw["metadata"]["name"] for raw in await kube.list(NODES)] == ["n"]
        assert (await kube.get(PRIORITY_CLASSES, "", "high") or {})["metadata"]["name"] == "high"
        assert await kube.get(PRIORITY_CLASSES, "", "low") is None
    paths = [seen.path for seen in server.requests]
    assert paths[:2] == ["/api/v1/nodes", "/apis/scheduling.k8s.io/v1/priorityclasses/high"]


async def test_a_list_reads_all_pages_and_only_what_is_labelled() -> None:
    server = FakeKube()
    for number in range(1201):
        labels = {"llmonray.dev/finetunejob": "demo"} if number else {}
        server.put("rayclusters", {"metadata": {"namespace": NAMESPACE, "name": f"c{number}", "labels": labels}})
    async with connected(server) as kube:
        listed = await kube.list(RAY_CLUSTERS, label="llmonray.dev/finetunejob")
    assert len({raw["metadata"]["name"] for raw in listed}) == len(listed) == 1200
    assert len(server.requests) == -(-1200 // PAGE_SIZE)


async def test_pages_show_one_state_and_name_its_version() -> None:
    server = FakeKube()
    for number in range(PAGE_SIZE + 1):
        server.put("rayclusters", {"metadata": {"namespace": NAMESPACE, "name": f"c{number:03}"}})
    version = str(server.version)
    async with connected(server) as kube:
        names, versions = [], set()
        async for page in kube.pages(RAY_CLUSTERS):
            if not names:
                server.remove("rayclusters", (NAMESPACE, "c000"))
                server.put("rayclusters", {"metadata": {"namespace": NAMESPACE, "name": "c999"}})
            names += [raw["metadata"]["name"] for raw in page.items]
            versions.add(page.version)
    assert names == [f"c{number:03}" for number in range(PAGE_SIZE + 1)]
    assert versions == {version}


async def test_a_round_trip_through_an_api_server() -> None:
    server = FakeKube()
    stored = server.put("finetunejobs", raw_job())
    async with connected(server) as kube:
        version = stored["metadata"]["resourceVersion"]
        written = await kube.patch_status(NAMESPACE, "demo", version, {"phase": "Pending", "reason": "Accepted"})
        assert written is not None
        assert written == await kube.get(FINETUNE_JOBS, NAMESPACE, "demo")
        with pytest.raises(ConflictError):
            await kube.patch_status(NAMESPACE, "demo", version, {"phase": "Failed"})
        assert await kube.get(CLAIMS, NAMESPACE, "none") is None
        assert make_job(status=written["status"]).status.phase == "Pending"
