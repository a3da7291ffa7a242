"""``finetune watch``: a live table on a terminal; elsewhere a line for each change."""

from __future__ import annotations

import argparse
import shutil
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime

from finetune_client.client import FinetuneClient
from finetune_client.commands import advice
from finetune_client.commands.common import bar, client_of, note, number, plain, say
from finetune_client.commands.listing import lines
from finetune_client.errors import NotInTimeError, look_at
from finetune_client.job import Change, Job
from finetune_client.kube.rest import Stop
from finetune_operator.api.phases import Phase

SPARKS = "▁▂▃▄▅▆▇█"
MOST_LOSSES = 30
"""Losses that are kept of a job: so many characters its line has."""


def run(options: argparse.Namespace) -> int:
    """Follow jobs; of one job until it has ended.

    Returns:
        The exit code: 1 when the one job has not succeeded.

    Raises:
        ClientError: there is no such job, or the cluster refuses or does not answer.
        NotInTimeError: --timeout is over, and the one job has not ended.
    """
    client = client_of(options)
    stop = Stop()
    end = timer(options.timeout, stop)
    live = sys.stdout.isatty()
    view = (_Live if live else _Lines)(namespaces=options.all_namespaces)
    job = None
    try:
        for change in _changes(client, options, stop):
            job = change.job
            view.show(change)
    except KeyboardInterrupt:
        note(
            "\nThe jobs go on."
            if job is None or options.job is None
            else f"\n{job} goes on; `finetune cancel {job.name}` ends it."
        )
        raise
    finally:
        end.cancel()
    if options.job is None:
        return 0
    if job is None:
        raise NotInTimeError(f"the API server has told nothing of finetunejob/{options.job} in time", look_at(options.job))
    if not job.has_ended:
        raise NotInTimeError(f"{job} is still {job.state}", look_at(job.name))
    return verdict(job)


def verdict(job: Job) -> int:
    """Say on standard error how a job has ended, if not well; give the exit code."""
    if job.phase is Phase.SUCCEEDED:
        return 0
    first = plain(job.message.strip().splitlines()[0]) if job.message.strip() else ""
    note(f"error: {job} has ended as {job.phase} ({plain(job.reason)}){first and ': '}{first}")
    note(f"  -> {advice.remedy(job) or advice.commands(job)[-1][0]}")
    note(f"  finetune status {job.name} tells all about it")
    return 1


def _changes(client: FinetuneClient, options: argparse.Namespace, stop: Stop) -> Iterator[Change]:
    return client.watch(options.job, all_namespaces=options.all_namespaces, stop=stop)


def timer(seconds: float | None, stop: Stop) -> threading.Timer:
    """Ends the watch after a time; without one it is never started."""
    timer = threading.Timer(seconds or 0, stop.set)
    timer.daemon = True
    if seconds is not None:
        timer.start()
    return timer


def sparkline(losses: list[float]) -> str:
    """The losses as a curve."""
    low, high = min(losses), max(losses)
    span = (high - low) or 1.0
    return "".join(SPARKS[round((loss - low) / span * (len(SPARKS) - 1))] for loss in losses)


class _Lines:
    """A line for each change that says something new."""

    def __init__(self, *, namespaces: bool) -> None:
        self._namespaces = namespaces
        self._last: dict[str, str] = {}

    def show(self, change: Change) -> None:
        """Print it."""
        job = change.job
        told = self._words(job) if change.kind != "DELETED" else "deleted"
        if self._last.get(job.uid) == told:
            return
        self._last[job.uid] = told
        name = f"{job.namespace}/{job.name}" if self._namespaces else job.name
        say(f"{datetime.now(UTC):%H:%M:%S} {plain(name)}: {told}")
        sys.stdout.flush()

    @staticmethod
    def _words(job: Job) -> str:
        percent, loss = job.number("status", "progress", "percent"), job.number("status", "progress", "loss")
        reason = "not taken up by an operator yet" if not job.read("status", "phase") else plain(job.reason)
        words = [f"{job.phase} ({reason})" if reason else str(job.phase)]
        if job.phase is Phase.RUNNING and percent is not None:
            words += [f"{percent:.0f}%"] + ([f"loss {number(loss)}"] if loss is not None else [])
        needs = advice.remedy(job)
        if job.message and (needs or job.phase is not Phase.RUNNING):
            words.append(plain(job.message)[:200])
        words[-1] += f" -> {needs}" if needs else ""
        return ", ".join(words)


class _Live:
    """The table, drawn anew in its place."""

    def __init__(self, *, namespaces: bool) -> None:
        self._namespaces = namespaces
        self._jobs: dict[str, Job] = {}
        self._losses: dict[str, list[float]] = defaultdict(list)
        self._drawn = 0

    def show(self, change: Change) -> None:
        """Draw the table with the change."""
        job = change.job
        if change.kind == "DELETED":
            self._jobs.pop(job.uid, None)
        else:
            self._jobs[job.uid] = job
        loss = job.number("status", "progress", "loss")
        if loss is not None and self._losses[job.uid][-1:] != [loss]:
            self._losses[job.uid] = [*self._losses[job.uid], loss][-MOST_LOSSES:]
        self._draw()

    def _draw(self) -> None:
        columns, rows = shutil.get_terminal_size()
        jobs = sorted(self._jobs.values(), key=lambda job: (job.namespace, job.name))[: max(1, (rows - 2) // 2)]
        drawn = lines(jobs, namespaces=self._namespaces) if jobs else ["There are no FinetuneJobs."]
        told = [
            line[:columns]
            for line in [
                drawn[0],
                *(part for job, line in zip(jobs, drawn[1:], strict=True) for part in (line, self._below(job))),
            ]
            if line
        ]
        up = f"\x1b[{self._drawn}A" if self._drawn else ""
        sys.stdout.write(up + "".join(f"\x1b[2K{line}\n" for line in told) + "\x1b[J")
        sys.stdout.flush()
        self._drawn = len(told)

    def _below(self, job: Job) -> str:
        """What the table has no column for."""
        percent = job.number("status", "progress", "percent")
        if job.phase is Phase.RUNNING and percent is not None and not advice.remedy(job):
            losses = self._losses[job.uid]
            return f"  {bar(percent)} {sparkline(losses) if len(losses) > 1 else ''}".rstrip()
        return f"  {plain(job.reason)}: {plain(job.message)}" if job.message and job.phase is not Phase.SUCCEEDED else ""
