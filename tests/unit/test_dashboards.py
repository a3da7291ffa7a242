"""The pool that asks dashboards, in virtual time: bounded, fair, with pauses, and one request for a job at a time."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from tests.support import virtual_time
from tests.support.builders import make_progress
from tests.support.virtual_time import now, pass_time

from finetune_operator.clients.dashboards import (
    PATIENCE_SECONDS,
    SILENT_SECONDS,
    TASKS,
    TASKS_FOR_THE_SLOW,
    TASKS_OF_A_NAMESPACE,
    Answer,
    Dashboards,
    Question,
)
from finetune_operator.clients.fairness import FairQueue
from finetune_operator.clients.ray import Dashboard
from finetune_operator.errors import RayError, RayUnavailableError
from finetune_operator.observed import RayJob

Key = tuple[str, str]
KEY = ("team", "a")


class Ray:
    """Stands for the client: dashboards are told apart by their address."""

    def __init__(self) -> None:
        self.calls: list[tuple[float, str, str]] = []
        """(when, what, address)."""
        self.states: dict[str, str] = {}
        """By address; those that are not here hang until the client gives up."""
        self.submitting: Exception | float | None = None
        """What a submission comes to, or how long it takes."""
        self.busy: Counter[str] = Counter()
        self.most: Counter[str] = Counter()
        """Requests at the same time by namespace; in all under the empty name."""

    async def _call(self, what: str, url: str, seconds: float) -> None:
        self.calls.append((now(), what, url))
        for name in (url.split("/", maxsplit=1)[0], ""):
            self.busy[name] += 1
            self.most[name] = max(self.most[name], self.busy[name])
        assert self.busy[f"{url}!"] == 0, "one request for a job at a time"
        self.busy[f"{url}!"] += 1
        await pass_time(seconds)
        self.busy.subtract([f"{url}!", url.split("/", maxsplit=1)[0], ""])

    async def job(self, dashboard: Dashboard, _id: str) -> RayJob:
        state: Any = self.states.get(dashboard.url)
        await self._call("job", dashboard.url, 0.01 if state else 5.0)
        return RayJob(state) if state else RayJob("Unknown", cause="no answer within 5 s")

    async def progress(self, dashboard: Dashboard, _ip: str) -> Any:
        await self._call("progress", dashboard.url, 0.01)
        return make_progress()

    async def submit(self, dashboard: Dashboard, _body: Any) -> None:
        await self._call("submit", dashboard.url, self.submitting if isinstance(self.submitting, float) else 0.01)
        if isinstance(self.submitting, Exception):
            raise self.submitting

    async def stop(self, dashboard: Dashboard, _id: str) -> None:
        await self._call("stop", dashboard.url, 0.01)

    def times(self, what: str, url: str) -> list[float]:
        return [time for time, kind, address in self.calls if (kind, address) == (what, url)]


def question(key: Key = KEY, **changes: Any) -> Question:
    values: dict[str, Any] = {
        "dashboard": Dashboard("/".join(key), "t"),
        "submission_id": "x-a1",
        "attempt": 1,
        "head_ip": "10.0.0.1",
    }
    return Question(**(values | changes))


@asynccontextmanager
async def asking(ray: Ray) -> AsyncIterator[tuple[Dashboards, list[tuple[float, Key]]]]:
    """A pool that runs, and when it woke which job."""
    woken: list[tuple[float, Key]] = []
    start = datetime(2026, 1, 1, tzinfo=UTC)
    pool = Dashboards(ray, lambda: start + timedelta(seconds=now()))  # type: ignore[arg-type]
    task = asyncio.create_task(pool.run(lambda key: woken.append((now(), key))))
    yield pool, woken
    assert not task.done(), "the pool ended"
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def test_an_answer_is_there_at_once_and_a_job_is_woken_when_it_has_come() -> None:
    async def scenario() -> None:
        ray = Ray()
        ray.states["team/a"] = "RUNNING"
        async with asking(ray) as (pool, woken):
            assert pool.ask(KEY, question()) == Answer()
            assert ray.calls == []
            await pass_time(1)
            assert [key for _time, key in woken] == [KEY]
            answer = pool.ask(KEY, question())
            assert (answer.asked, answer.ray_job, answer.progress) == (True, RayJob("RUNNING"), make_progress())

    virtual_time.run(scenario())


def test_an_answer_comes_again_when_the_plan_says_and_once_for_many_events() -> None:
    async def scenario() -> None:
        ray = Ray()
        ray.states["team/a"] = "PENDING"
        async with asking(ray) as (pool, _woken):
            pool.ask(KEY, question())
            await pass_time(1)
            pool.ask(KEY, question())
            assert pool.again(KEY, 7.0) == 7.0 + PATIENCE_SECONDS
            await pass_time(6)
            assert len(ray.calls) == 1
            await pass_time(2)
            assert len(ray.calls) == 2
            for _ in range(100):
                pool.ask(KEY, question())
                await pass_time(0.1)
            assert len(ray.calls) <= 2 + 10 / 0.5, "ten seconds of events"

    virtual_time.run(scenario())


def test_a_dashboard_that_does_not_answer_is_asked_less_and_less_often_and_wakes_its_job_once() -> None:
    async def scenario() -> None:
        ray = Ray()
        async with asking(ray) as (pool, woken):
            pool.ask(KEY, question())
            await pass_time(600)
            answer = pool.ask(KEY, question())
            assert answer.silence is not None
            assert (answer.silence.since, answer.silence.cause) == (datetime(2026, 1, 1, tzinfo=UTC), "no answer within 5 s")
            assert pool.again(KEY, 1.0) == 1.0, "the pauses are its own"
            pauses = [later - earlier - 5 for earlier, later in itertools.pairwise(ray.times("job", "team/a"))]
            assert pauses[0] < 1
            assert all(22 < pause < 38 for pause in pauses[7:]), pauses
            assert SILENT_SECONDS == (0.5, 30.0)
            assert len(woken) == 1
            assert pool.unreachable() == 1
            ray.states["team/a"] = "RUNNING"
            await pass_time(60)
            assert pool.ask(KEY, question()).silence is None
            assert len(woken) == 2

    virtual_time.run(scenario())


def test_nobody_is_asked_any_more_while_the_last_requests_are_broken_off() -> None:
    class LongClosing(Ray):
        async def job(self, dashboard: Dashboard, _id: str) -> RayJob:
            try:
                return await super().job(dashboard, _id)
            except asyncio.CancelledError:
                await pass_time(10)
                raise

    async def scenario() -> None:
        ray, other = LongClosing(), ("team", "b")
        ray.states["team/b"] = "RUNNING"
        failures: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _loop, context: failures.append(context))
        async with asking(ray) as (pool, _woken):
            pool.ask(KEY, question())
            pool.ask(other, question(other))
            await pass_time(1)
            pool.ask(other, question(other))
            pool.again(other, 2.0)
        assert now() > 10
        assert failures == []
        assert len(ray.times("job", "team/b")) == 1

    virtual_time.run(scenario())


def test_hundreds_of_dashboards_that_hang_hold_up_none_of_another_namespace() -> None:
    async def scenario() -> None:
        ray = Ray()
        waited = []
        async with asking(ray) as (pool, _woken):
            for number in range(200):
                pool.ask(("hostile", str(number)), question(("hostile", str(number))))
            for number in range(60):
                await pass_time(1)
                key = ("team", str(number))
                ray.states["/".join(key)] = "PENDING"
                began = now()
                pool.ask(key, question(key))
                while not pool.ask(key, question(key)).asked:
                    await pass_time(0.01)
                waited.append(now() - began)
        assert max(waited) < 0.1
        assert ray.most["hostile"] <= TASKS_OF_A_NAMESPACE

    virtual_time.run(scenario())


def test_namespaces_of_dashboards_that_all_hang_share_a_part_of_the_pool() -> None:
    async def scenario() -> None:
        ray = Ray()
        async with asking(ray) as (pool, _woken):
            for number in range(400):
                key = (f"hostile-{number % 20}", str(number))
                pool.ask(key, question(key))
            await pass_time(60)
            ray.most.clear()
            ray.states["team/a"] = "PENDING"
            for _ in range(100):
                pool.forget(KEY)
                pool.ask(KEY, question())
                await pass_time(0.1)
                assert pool.ask(KEY, question()).asked, "it has its turn at once"
        assert TASKS_FOR_THE_SLOW <= ray.most[""] <= TASKS_FOR_THE_SLOW + 1
        assert TASKS_FOR_THE_SLOW < TASKS

    virtual_time.run(scenario())


def test_a_submission_is_carried_out_once_and_the_run_is_looked_at_after_it() -> None:
    async def scenario() -> None:
        ray = Ray()
        ray.states["team/a"] = "Missing"
        ray.submitting = 20.0
        async with asking(ray) as (pool, woken):
            pool.ask(KEY, question())
            await pass_time(1)
            pool.submit(KEY, {})
            assert not pool.ask(KEY, question()).asked, "what was said before it holds no more"
            pool.stop(KEY)
            ray.states["team/a"] = "PENDING"
            await pass_time(10)
            pool.stop(KEY)
            await pass_time(30)
            assert [what for _time, what, _url in ray.calls] == ["job", "submit", "job", "stop", "job"]
            assert pool.ask(KEY, question()).ray_job.state == "PENDING"
            assert len(woken) == 2

    virtual_time.run(scenario())


def test_an_answer_about_an_earlier_run_or_head_is_not_taken_for_one_about_this() -> None:
    async def scenario() -> None:
        ray = Ray()
        async with asking(ray) as (pool, _woken):
            for changes in ({"submission_id": "x-a2"}, {"head_ip": "10.0.0.2"}, {"dashboard": Dashboard("team/b", "t")}):
                pool.ask(KEY, question())
                await pass_time(1)
                assert not pool.ask(KEY, question(**changes)).asked
                await pass_time(4.5)
                assert not pool.ask(KEY, question(**changes)).asked, "the answer that has come was to the earlier question"
                await pass_time(20)
                assert pool.ask(KEY, question(**changes)).asked
                pool.forget(KEY)
                await pass_time(20)

    virtual_time.run(scenario())


def test_a_report_of_another_attempt_is_none() -> None:
    async def scenario() -> None:
        ray = Ray()
        ray.states["team/a"] = "RUNNING"
        async with asking(ray) as (pool, _woken):
            pool.ask(KEY, question(attempt=2))
            await pass_time(1)
            assert pool.ask(KEY, question(attempt=2)).progress is None

    virtual_time.run(scenario())


@pytest.mark.parametrize("leave", ["forget", "rest"])
def test_a_job_that_is_left_alone_is_asked_about_no_more(leave: str) -> None:
    async def scenario() -> None:
        ray = Ray()
        async with asking(ray) as (pool, woken):
            pool.ask(KEY, question())
            await pass_time(1)
            getattr(pool, leave)(KEY)
            await pass_time(600)
            assert len(ray.calls) == 1
            assert woken == []
            ray.states["team/a"] = "PENDING"
            assert not pool.ask(KEY, question()).asked
            await pass_time(60)
            assert pool.ask(KEY, question()).asked

    virtual_time.run(scenario())


def test_what_comes_of_submissions_is_told() -> None:
    async def scenario() -> None:
        ray = Ray()
        ray.states["team/a"] = "Missing"
        async with asking(ray) as (pool, _woken):
            pool.ask(KEY, question())
            await pass_time(1)
            told = []
            for outcome in (RayError("no agent"), None, RayUnavailableError("503"), RayUnavailableError("503"), None):
                ray.submitting = outcome
                pool.submit(KEY, {})
                await pass_time(10)
                unanswered = pool.unanswered(KEY)
                told.append((pool.refusal(KEY), unanswered and unanswered.since.second))
            assert told[:2] == [("no agent", None), ("", None)]
            assert told[2][1] == told[3][1] == 21, "since the first of them"
            assert told[4] == ("Ray has accepted the submission 2 times, and each time says that it does not know it", None)

    virtual_time.run(scenario())


def test_whatever_reading_an_answer_brings_about_concerns_that_job_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Ray):
        async def job(self, dashboard: Dashboard, id_: str) -> RayJob:
            if dashboard.url == "team/poison":
                raise RecursionError
            return await super().job(dashboard, id_)

    async def scenario() -> None:
        ray = Broken()
        ray.states["team/a"] = "PENDING"
        async with asking(ray) as (pool, _woken):
            for key in (("team", "poison"), KEY):
                pool.ask(key, question(key))
            await pass_time(1)
            assert pool.ask(("team", "poison"), question(("team", "poison"))).silence is not None
            assert pool.ask(KEY, question()).ray_job.state == "PENDING"

    virtual_time.run(scenario())
    assert "cannot be read" in caplog.text


def test_namespaces_take_turns() -> None:
    queue = FairQueue()
    for key in (("a", "1"), ("a", "2"), ("a", "3"), ("b", "1"), ("b", "2"), ("c", "1"), ("a", "1")):
        queue.add(key)
    assert len(queue) == 6
    queue.discard(("b", "2"))
    queue.discard(("z", "1"))
    taken = [queue.take(lambda namespace: namespace != "c") for _ in range(5)]
    assert taken == [("a", "1"), ("b", "1"), ("a", "2"), ("a", "3"), None]
    assert ("c", "1") in queue
    assert queue.take(lambda _namespace: True) == ("c", "1")
    assert len(queue) == 0
