"""Events on their way from the threads of kopf to the loop that everything else runs on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from kubernetes.aio import client
from tests.support.builders import raw_job
from tests.support.http_server import until

from finetune_operator.clients.cache import Cache, Key
from finetune_operator.clients.kube import KubeClient
from finetune_operator.constants import PLURAL
from finetune_operator.queue import WorkQueue
from finetune_operator.view import View
from finetune_operator.watching import Events

BURST = 3_000

Event = tuple[str, str, dict[str, Any]]


async def _nothing(_key: Key) -> None:
    return None


@asynccontextmanager
async def handing_over() -> AsyncIterator[tuple[View, Events]]:
    """A view, and what hands events to it."""
    kube = KubeClient(client.ApiClient(client.Configuration(host="http://127.0.0.1:9")))
    view = View(kube, Cache(), WorkQueue(_nothing))
    events = Events(view)
    task = asyncio.create_task(events.hand_over())
    try:
        yield view, events
        assert not task.done()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await kube.close()


def added(number: int, **metadata: Any) -> Event:
    identity = {"name": f"job-{number}", "uid": f"u-{number}", "resourceVersion": str(1 + number)}
    return "ADDED", PLURAL, raw_job(metadata=identity | metadata)


async def tell(events: Events, what: Iterable[Event]) -> None:
    """As a thread of kopf does."""
    await asyncio.to_thread(lambda: [events.tell(*event) for event in what])


async def test_a_burst_of_events_leaves_turns_to_everything_else() -> None:
    async with handing_over() as (view, events):
        burst = [added(number) for number in range(BURST)]
        for event in burst:
            events.tell(*event)
        turns, loop = 0, asyncio.get_running_loop()

        def turn() -> None:
            nonlocal turns
            if len(view.cache.keys(PLURAL)) < BURST:
                turns += 1
                loop.call_soon(turn)

        turn()
        await until(lambda: len(view.cache.keys(PLURAL)) == BURST, "all events are taken")
        assert turns > 4


async def test_events_keep_their_order() -> None:
    async with handing_over() as (view, events):
        versions = [added(0, resourceVersion=str(version)) for version in range(10, 20)]
        deleted = ("DELETED", PLURAL, raw_job(metadata={"name": "job-0", "uid": "u-0", "resourceVersion": "20"}))
        await tell(events, [*versions, deleted, added(1)])
        await until(lambda: view.cache.keys(PLURAL) == {("team", "job-1")}, "the last event is taken")


async def test_an_event_that_cannot_be_read_stops_no_other(caplog: pytest.LogCaptureFixture) -> None:
    async with handing_over() as (view, events):
        await tell(events, [("ADDED", PLURAL, {"metadata": {}}), added(1)])
        await until(lambda: view.cache.keys(PLURAL), "the next event is taken")
    assert "an event of kind finetunejobs cannot be read" in caplog.text
