"""The work queue, in virtual time."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from tests.support import virtual_time
from tests.support.virtual_time import now, pass_time

from finetune_operator.queue import WorkQueue

Work = Callable[[str], Awaitable[float | None]]


@asynccontextmanager
async def working(work: Work, workers: int = 2) -> AsyncIterator[WorkQueue[str]]:
    queue = WorkQueue(work)
    tasks = [asyncio.create_task(queue.run_worker()) for _ in range(workers)]
    yield queue
    assert not any(task.done() for task in tasks), "a worker ended"
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class Record:
    """Work that notes when it ran; fails or comes again as told."""

    def __init__(self, *outcomes: float | Exception | None) -> None:
        self.runs: list[tuple[str, float]] = []
        self.outcomes = list(outcomes)

    async def __call__(self, key: str) -> float | None:
        self.runs.append((key, now()))
        outcome = self.outcomes.pop(0) if self.outcomes else None
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def times(self) -> list[float]:
        return [time for _key, time in self.runs]


class Slow:
    """Work that takes ten seconds, and counts how much of it runs at once."""

    def __init__(self) -> None:
        self.started: list[tuple[str, float]] = []
        self.running: list[str] = []
        self.most_at_once = 0

    async def __call__(self, key: str) -> None:
        assert key not in self.running, "the same key twice at once"
        self.started.append((key, now()))
        self.running.append(key)
        self.most_at_once = max(self.most_at_once, len(self.running))
        await pass_time(10)
        self.running.remove(key)


def test_a_key_never_runs_twice_at_once_and_runs_again_once_for_all_that_came_meanwhile() -> None:
    async def scenario() -> None:
        work = Slow()
        async with working(work) as queue:
            queue.add("a")
            for _ in range(5):
                await pass_time(1)
                queue.add("a")
            await pass_time(100)
        assert work.started == [("a", 0), ("a", 10)]

    virtual_time.run(scenario())


def test_different_keys_run_at_the_same_time() -> None:
    async def scenario() -> None:
        work = Slow()
        async with working(work, workers=3) as queue:
            for key in "abcd":
                queue.add(key)
            await pass_time(100)
        assert work.most_at_once == 3
        assert work.started == [("a", 0), ("b", 0), ("c", 0), ("d", 10)]

    virtual_time.run(scenario())


def test_a_key_that_waits_is_there_once() -> None:
    async def scenario() -> None:
        work = Record()
        async with working(work) as queue:
            for _ in range(5):
                queue.add("a")
            assert len(queue) == 1
            await pass_time(100)
            assert len(queue) == 0
        assert work.runs == [("a", 0)]

    virtual_time.run(scenario())


@pytest.mark.parametrize(
    ("outcomes", "times"), [((None,), [0]), ((7.0, 3.0, None), [0, 7, 10]), ((0.0, 0.0, None), [0, 0, 0]), ((-1.0,), [0, 0])]
)
def test_a_key_comes_again_when_its_work_says(outcomes: tuple[float | None, ...], times: list[float]) -> None:
    async def scenario() -> None:
        work = Record(*outcomes)
        async with working(work) as queue:
            queue.add("a")
            await pass_time(1000)
        assert work.times() == times

    virtual_time.run(scenario())


@pytest.mark.parametrize(("first", "second"), [(10, 5), (5, 10)])
def test_the_earlier_of_two_times_holds_and_the_later_is_dropped(first: float, second: float) -> None:
    async def scenario() -> None:
        work = Record()
        async with working(work) as queue:
            queue.add("a", after=first)
            queue.add("a", after=second)
            await pass_time(1000)
        assert work.times() == [5]

    virtual_time.run(scenario())


def test_an_event_brings_a_key_forward_and_takes_the_place_of_its_timer() -> None:
    async def scenario() -> None:
        work = Record()
        async with working(work) as queue:
            queue.add("a", after=10)
            await pass_time(2)
            queue.add("a")
            await pass_time(1000)
        assert work.times() == [2]

    virtual_time.run(scenario())


def test_failures_back_off_twice_as_long_each_time_up_to_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        work = Record(*[RuntimeError("boom")] * 12)
        async with working(work) as queue:
            queue.add("a")
            await pass_time(3600)
        times = work.times()
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        wanted = [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
        assert len(pauses) == len(wanted)
        for pause, middle in zip(pauses, wanted, strict=True):
            assert 0.74 * middle <= pause <= 1.26 * middle

    virtual_time.run(scenario())
    assert "reconcile of a failed 12 times in a row" in caplog.text


def test_a_success_ends_the_back_off() -> None:
    async def scenario() -> None:
        boom = RuntimeError("boom")
        work = Record(boom, boom, boom, boom, 100.0, boom, None)
        async with working(work) as queue:
            queue.add("a")
            await pass_time(1000)
        times = work.times()
        assert times[6] - times[5] < 0.7

    virtual_time.run(scenario())


def test_jitter_keeps_failing_jobs_apart() -> None:
    async def scenario() -> None:
        work = Record(*[RuntimeError("boom")] * 20)
        async with working(work) as queue:
            for number in range(20):
                queue.add(f"job-{number}")
            await pass_time(5)
        assert len(set(work.times()[20:])) > 15

    virtual_time.run(scenario())


def test_one_poison_job_delays_no_other() -> None:
    async def scenario() -> None:
        runs: list[tuple[str, float]] = []

        async def work(key: str) -> float:
            runs.append((key, now()))
            if key == "poison":
                raise RuntimeError("boom")
            return 1.0

        async with working(work, workers=1) as queue:
            queue.add("poison")
            queue.add("good")
            await pass_time(50.5)
        assert [time for key, time in runs if key == "good"] == [float(second) for second in range(51)]

    virtual_time.run(scenario())


def test_a_cancelled_worker_ends_in_the_middle_of_its_work() -> None:
    async def scenario() -> None:
        work = Slow()
        queue = WorkQueue(work)
        task = asyncio.create_task(queue.run_worker())
        queue.add("a")
        await pass_time(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    virtual_time.run(scenario())
