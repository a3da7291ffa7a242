"""Watches FinetuneJobs: a LIST, then the changes since; again from the beginning where the API server has forgotten them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from time import monotonic
from types import TracebackType
from typing import Any

from finetune_client.errors import ClientError, RefusedError, UnreachableError
from finetune_client.job import Change, Job
from finetune_client.kube.rest import PATIENCE_SECONDS, Rest, Stop

WATCH_SECONDS = 60
"""How long one request watches: after that a new one shows whether the connection is still alive."""

SHORT_SECONDS = 5.0
"""A watch that ends sooner and has told nothing is followed by a pause: the server may end each one at once."""

PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between two tries, the last one again and again."""


class Explaining:
    """Puts another error in the place of a kind of errors."""

    def __init__(self, kind: type[ClientError], instead: ClientError) -> None:
        self._kind = kind
        self._instead = instead

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if isinstance(error, self._kind):
            raise self._instead from error


def changes(rest: Rest, path: str, name: str | None, stop: Stop, deadline: float | None = None) -> Iterator[Change]:
    """Each job that there is, then each change of one, until the deadline, a stop, or for ever."""
    watch = _Watch(rest, path, name, stop, deadline)
    silent_since, failures = None, 0
    while not watch.is_over():
        begun = monotonic()
        try:
            for change in watch.once():
                silent_since, failures, begun = None, 0, 0.0
                yield change
            silent_since, failures = None, 0
            if monotonic() - begun < SHORT_SECONDS and not watch.is_over():
                stop.wait(PAUSES[2])
        except UnreachableError:
            if stop.is_set:
                return
            silent_since = silent_since or monotonic()
            if watch.version == "" or monotonic() - silent_since > PATIENCE_SECONDS:
                raise  # whoever has never been answered gets no patience: the address may be wrong
            stop.wait(PAUSES[min(failures, len(PAUSES) - 1)])
            failures += 1


class _Watch:
    """Where a watch has come to."""

    def __init__(self, rest: Rest, path: str, name: str | None, stop: Stop, deadline: float | None) -> None:
        self._rest, self._path, self._stop, self._deadline = rest, path, stop, deadline
        self._query = {"fieldSelector": f"metadata.name={name}"} if name else {}
        self._known: dict[str, Job] = {}
        self.version = ""
        """resourceVersion up to which everything was told; empty: nothing was listed yet."""
        self._listed = False

    def is_over(self) -> bool:
        """Whether it was stopped, has no time left, or is about one job that is not there (any more)."""
        if self._stop.is_set or not self._listed:
            return self._stop.is_set
        return (bool(self._query) and not self._known) or (self._deadline is not None and monotonic() >= self._deadline)

    def once(self) -> Iterator[Change]:
        """List if that is needed, then watch with one request."""
        if not self._listed:
            yield from self._list()
        seconds = WATCH_SECONDS if self._deadline is None else min(WATCH_SECONDS, self._deadline - monotonic())
        if not self.is_over():
            yield from self._watch(max(seconds, 0.1))

    def _watch(self, seconds: float) -> Iterator[Change]:
        query = self._query | {"watch": "true", "allowWatchBookmarks": "true", "resourceVersion": self.version}
        query["timeoutSeconds"] = str(max(1, round(seconds)))
        limit = WATCH_SECONDS + 15.0  # by then a server that is alive has ended the request
        if self._deadline is not None:
            limit = min(limit, max(0.1, self._deadline - monotonic()))
        try:
            for line in self._rest.lines(self._path, query, limit, self._stop):
                yield from self._read(line)
                if self.is_over():
                    return
        except RefusedError as error:
            if error.status != 410:
                raise
            self._listed = False
        except UnreachableError:
            if not self.is_over():
                raise

    def _list(self) -> Iterator[Change]:
        items, version = self._rest.items(self._path, **self._query)
        jobs = {job.uid: job for job in map(Job, items)}
        gone = [job for uid, job in self._known.items() if uid not in jobs]
        fresh = [(uid not in self._known, job) for uid, job in jobs.items() if self._known.get(uid) != job]
        self._known, self.version, self._listed = jobs, version, True
        yield from (Change("DELETED", job) for job in gone)
        yield from (Change("ADDED" if new else "MODIFIED", job) for new, job in fresh)

    def _read(self, line: bytes) -> Iterator[Change]:
        """An event of a watch; what is none ends the request, and the next one begins where the last event was."""
        try:
            told: Any = json.loads(line)
            kind, raw = told["type"], told["object"]
            version = str(raw.get("code")) if kind == "ERROR" else str(raw["metadata"]["resourceVersion"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise UnreachableError("the API server sends no event", details=repr(line[:500])) from error
        if kind == "ERROR":
            said = str(raw.get("message") or "the watch was ended")
            raise RefusedError(410, said) if version == "410" else UnreachableError(f"the API server says: {said}")
        self.version = version
        if kind == "BOOKMARK":
            return
        job = Job(raw)
        if kind == "DELETED":
            self._known.pop(job.uid, None)
        else:
            self._known[job.uid] = job
        yield Change(kind, job)
