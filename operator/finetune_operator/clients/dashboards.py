"""What is known of each job's Ray dashboard, and a bounded pool of tasks that asks them.

A reconcile reads the newest answer and never waits for a dashboard: some never answer, and each would hold a worker. The pool
asks, and an answer wakes the job. Requests for one job follow one another: a run is never stopped while it is being submitted.

The pool is shared by all tenants, so no one can fill it: the namespaces take turns, none has more than a part of the tasks,
and dashboards that were slow or silent share a part of their own. A dashboard that does not answer is asked less and less often.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from finetune_operator.backoff import pause_after
from finetune_operator.clients.cache import Key
from finetune_operator.clients.fairness import FairQueue
from finetune_operator.clients.ray import Dashboard, RayClient
from finetune_operator.errors import RayError, RayUnavailableError
from finetune_operator.observed import UNKNOWN, RayJob, Silence
from finetune_trainer.tracking.progress import Progress

TASKS = 64
"""Requests to dashboards at the same time. One that hangs costs a socket and some kilobytes for five seconds."""

TASKS_OF_A_NAMESPACE = 16
"""So that four namespaces of dashboards that all hang are needed to fill the pool, and only until they are known as slow."""

TASKS_FOR_THE_SLOW = 16
"""All dashboards together whose last answer was late or missing."""

SLOW_SECONDS = 1.0
"""A dashboard that takes longer is slow; a usual answer takes some ten milliseconds."""

SILENT_SECONDS = (0.5, 30.0)
"""First and longest pause before a dashboard that does not answer is asked again."""

SPACING_SECONDS = 0.5
"""Least time between two polls of one dashboard, however many events its job has."""

PATIENCE_SECONDS = 10.0
"""How much later than a poll is due its job is looked at without one."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """What is asked: an answer holds for this run on this head only."""

    dashboard: Dashboard
    submission_id: str
    attempt: int
    head_ip: str
    submitted: bool = True
    """Whether Ray is known to have the run. That it did not know it before, when perhaps another operator had not submitted it
    yet, says nothing about now."""


@dataclass(frozen=True)
class Answer:
    """What a dashboard last said."""

    asked: bool = False
    """False: it was not asked yet, or not since the operator acted on it."""
    ray_job: RayJob = UNKNOWN
    progress: Progress | None = None
    silence: Silence | None = None
    at: datetime | None = None
    """When it was asked for, which is the age of all this."""


@dataclass
class _Errand:
    """A request that changes something: what is submitted, or None to stop the run."""

    submission: dict[str, Any] | None


@dataclass
class _Line:
    """The connection to one job's dashboard."""

    question: Question
    answer: Answer = field(default_factory=Answer)
    read: bool = False
    """A reconcile has seen the answer."""
    wanted: bool = True
    """False: the head is not ready, so nothing is asked for now."""
    errand: _Errand | None = None
    slow: bool = False
    failures: int = 0
    """Polls in a row without an answer."""
    silent_since: datetime | None = None
    """When the first of them began."""
    timer: asyncio.TimerHandle | None = None
    earliest: float = 0.0
    """When it may be asked again, by the loop's clock."""
    accepted: int = 0
    """Submissions that Ray has accepted."""
    refusal: str = ""
    """Ray's words about the last submission, if it was refused."""
    unanswered: Silence | None = None
    """Why a submission has got no answer, and since when."""


class Dashboards:
    """The lines to all dashboards by job."""

    def __init__(self, ray: RayClient, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._ray = ray
        self._clock = clock
        self._lines: dict[Key, _Line] = {}
        self._prompt, self._slow = FairQueue(), FairQueue()
        self._running: Counter[str] = Counter()
        """Tasks by namespace."""
        self._running_slow = 0
        self._busy: set[Key] = set()
        """Jobs whose dashboard a task is talking to, perhaps about an earlier run."""
        self._group: asyncio.TaskGroup | None = None
        self._wake: Callable[[Key], None] = lambda _key: None

    async def run(self, wake: Callable[[Key], None]) -> None:
        """Ask, until cancelled; ``wake`` is called with each job that has an answer to be looked at."""
        self._wake = wake
        async with asyncio.TaskGroup() as group:
            try:
                self._group = group
                self._dispatch()
                await asyncio.Event().wait()
            finally:
                # Before the requests are broken off, which takes a while: a timer would begin more of them.
                self._group = None
                for key in list(self._lines):
                    self.forget(key)

    def waiting(self) -> int:
        """Dashboards that wait for their turn."""
        return len(self._prompt) + len(self._slow)

    def silent(self) -> list[Silence]:
        """The dashboards that do not answer at present."""
        return [line.answer.silence for line in self._lines.values() if line.answer.silence is not None]

    def unreachable(self) -> int:
        """How many of them have not answered for so long that their jobs say so."""
        now = self._clock()
        return sum(silence.seconds_until_reported(now) == 0 for silence in self.silent())

    def ask(self, key: Key, question: Question) -> Answer:
        """The newest answer. Another poll begins soon if a reconcile has seen it before, or if it is about something else."""
        line = self._lines.get(key)
        if line is None or line.question.submission_id != question.submission_id:
            self.forget(key)
            line = self._lines[key] = _Line(question)
        elif line.question != question:
            same_run = replace(line.question, submitted=question.submitted) == question
            if not same_run or line.answer.ray_job.state == "Missing":
                line.answer = Answer()
            line.question = question
        line.wanted = True
        if line.read or not line.answer.asked:
            self._poll_after(key, line, 0.0)
        line.read = True
        return line.answer

    def again(self, key: Key, after: float) -> float:
        """Poll once more after some seconds; how long its job can wait for the answer. A dashboard that does not answer has
        its own, longer pauses.
        """
        line = self._lines.get(key)
        if line is None or not line.answer.asked or line.answer.ray_job == UNKNOWN:
            return after
        self._poll_after(key, line, after)
        return after + PATIENCE_SECONDS

    def submit(self, key: Key, submission: dict[str, Any]) -> None:
        """Submit a run, soon; the job is woken by what the dashboard says of it then."""
        self._send(key, _Errand(submission))

    def stop(self, key: Key) -> None:
        """Ask the run to stop, soon; as above."""
        self._send(key, _Errand(None))

    def refusal(self, key: Key) -> str:
        """Why the submission has not had its effect; empty: nothing is known against it."""
        line = self._lines.get(key)
        if line is None:
            return ""
        if line.refusal or line.accepted < 2:
            return line.refusal
        return f"Ray has accepted the submission {line.accepted} times, and each time says that it does not know it"

    def unanswered(self, key: Key) -> Silence | None:
        """Set while submissions get no answer."""
        line = self._lines.get(key)
        return line.unanswered if line else None

    def rest(self, key: Key) -> None:
        """Do not ask for now: the head is not ready. What was said before that holds no more."""
        if (line := self._lines.get(key)) is not None:
            self._cancel(key, line)
            line.wanted, line.answer, line.silent_since = False, Answer(), None

    def forget(self, key: Key) -> None:
        """The job is gone or has ended."""
        if (line := self._lines.pop(key, None)) is not None:
            self._cancel(key, line)

    def _cancel(self, key: Key, line: _Line) -> None:
        line.errand = None
        self._prompt.discard(key)
        self._slow.discard(key)
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None

    def _send(self, key: Key, errand: _Errand) -> None:
        line = self._lines.get(key)
        if line is not None and line.errand is None:
            line.errand, line.answer = errand, Answer()
            self._enqueue(key, line)

    def _poll_after(self, key: Key, line: _Line, after: float) -> None:
        """Poll after some seconds, unless a poll comes sooner, and never before the pause of the line is over."""
        if key in self._busy or key in self._prompt or key in self._slow:
            return
        loop = asyncio.get_running_loop()
        due = max(loop.time() + after, line.earliest)
        if line.timer is not None:
            if line.timer.when() <= due:
                return
            line.timer.cancel()
        line.timer = loop.call_at(due, self._enqueue, key, line)

    def _enqueue(self, key: Key, line: _Line) -> None:
        if line.timer is not None:
            line.timer.cancel()
            line.timer = None
        if key not in self._busy:
            (self._slow if line.slow else self._prompt).add(key)
            self._dispatch()

    def _dispatch(self) -> None:
        while self._group is not None and self._running.total() < TASKS:
            key = self._prompt.take(self._may_run)
            if key is None and self._running_slow < TASKS_FOR_THE_SLOW:
                key = self._slow.take(self._may_run)
            if key is None:
                return
            self._group.create_task(self._attend(key, self._lines[key]))
            # counted here rather than in the task, which begins later
            self._busy.add(key)
            self._running[key[0]] += 1
            self._running_slow += self._lines[key].slow

    def _may_run(self, namespace: str) -> bool:
        return self._running[namespace] < TASKS_OF_A_NAMESPACE

    async def _attend(self, key: Key, line: _Line) -> None:
        was_slow, began = line.slow, asyncio.get_running_loop().time()
        try:
            await self._converse(key, line)
        finally:
            self._running[key[0]] -= 1
            self._running += Counter()  # drops the namespaces that have none
            self._running_slow -= was_slow
            self._busy.discard(key)
        now = asyncio.get_running_loop().time()
        line.slow = now - began > SLOW_SECONDS or line.failures > 0
        line.earliest = now + (pause_after(line.failures, SILENT_SECONDS) if line.failures else SPACING_SECONDS)
        self._go_on(key)
        self._dispatch()

    def _go_on(self, key: Key) -> None:
        """Do what has become due for a job during a conversation, which may have been about an earlier run."""
        line = self._lines.get(key)
        if line is None or not line.wanted:
            return
        if line.errand is not None:
            self._enqueue(key, line)
        elif line.failures or not line.answer.asked:
            self._poll_after(key, line, 0.0)

    async def _converse(self, key: Key, line: _Line) -> None:
        """Carry out the errand, if there is one, and then ask how the run is."""
        errand, question = line.errand, line.question
        line.errand = None
        if errand is not None:
            await self._carry_out(key, line, question, errand)
        answer = await self._poll(question)
        if self._lines.get(key) is not line or line.question != question or line.errand is not None or not line.wanted:
            return  # the answer is about something else, or older than what is to be done
        line.failures = line.failures + 1 if answer.ray_job == UNKNOWN else 0
        if answer.silence is None:
            line.silent_since = None
        else:
            line.silent_since = line.silent_since or answer.silence.since
            answer = replace(answer, silence=replace(answer.silence, since=line.silent_since))
        before, line.answer = line.answer, answer
        if answer.silence is None or not before.asked or answer.silence != before.silence:
            line.read = False
            self._wake(key)

    async def _carry_out(self, key: Key, line: _Line, question: Question, errand: _Errand) -> None:
        try:
            if errand.submission is None:
                await self._ray.stop(question.dashboard, question.submission_id)
                return
            await self._ray.submit(question.dashboard, errand.submission)
            line.accepted, line.refusal, line.unanswered = line.accepted + 1, "", None
            logger.info("%s/%s: submitted %s", *key, question.submission_id)
        except RayUnavailableError as error:
            logger.info("%s/%s: no answer to a request of run %s: %s", *key, question.submission_id, error)
            if errand.submission is not None:
                since = line.unanswered.since if line.unanswered else self._clock()
                line.unanswered = Silence(since, f"the submission gets no answer: {error}")
        except RayError as error:
            logger.info("%s/%s: %s", *key, error)
            line.refusal, line.unanswered = str(error), None

    async def _poll(self, question: Question) -> Answer:
        at = self._clock()
        try:
            ray_job = await self._ray.job(question.dashboard, question.submission_id)
            if ray_job == UNKNOWN:
                return Answer(asked=True, silence=Silence(at, ray_job.cause), at=at)
            if ray_job.state in {"Missing", "PENDING"}:
                return Answer(asked=True, ray_job=ray_job, at=at)
            # read the report after the state: the driver's last report precedes its end
            progress = await self._ray.progress(question.dashboard, question.head_ip)
        except Exception:  # whatever a foreign answer has brought about, it concerns this job alone
            logger.exception("the answer of %s about %s cannot be read", question.dashboard.url, question.submission_id)
            return Answer(asked=True, silence=Silence(at, "its answer cannot be read; the operator's log says why"), at=at)
        if progress is not None and progress.attempt != question.attempt:
            progress = None
        return Answer(asked=True, ray_job=ray_job, progress=progress, at=at)
