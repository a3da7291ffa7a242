"""A keyed work queue: one reconcile per key at a time, duplicates are merged, failures back off."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

from finetune_operator.backoff import pause_after

K = TypeVar("K", bound=Hashable)

BACKOFF_SECONDS = (0.5, 60.0)
"""First and longest pause after a failed reconcile; each pause is twice the previous one."""

logger = logging.getLogger(__name__)


class WorkQueue(Generic[K]):
    """Runs ``work(key)`` for each key that was added, never twice at once for the same key.

    ``work`` returns the seconds after which the key is due again, or None.
    """

    def __init__(self, work: Callable[[K], Awaitable[float | None]]) -> None:
        self._work = work
        self._ready: asyncio.Queue[K] = asyncio.Queue()
        self._queued: set[K] = set()
        self._running: set[K] = set()
        self._again: set[K] = set()
        self._timers: dict[K, tuple[float, asyncio.TimerHandle]] = {}
        self._failures: defaultdict[K, int] = defaultdict(int)

    def __len__(self) -> int:
        """Keys that wait for a worker."""
        return len(self._queued)

    def add(self, key: K, after: float = 0.0) -> None:
        """Queue a key, now or after some seconds; an earlier time that is already set has precedence."""
        if after > 0:
            self._add_later(key, after)
        elif key in self._running:
            self._again.add(key)
        elif key not in self._queued:
            self._queued.add(key)
            self._ready.put_nowait(key)

    async def run_worker(self) -> None:
        """Work forever. Run as many of these as reconciles may run at the same time."""
        while True:
            key = await self._ready.get()
            self._queued.discard(key)
            self._cancel_timer(key)
            self._running.add(key)
            try:
                await self._run_once(key)
            finally:
                self._running.discard(key)
            if key in self._again:
                self._again.discard(key)
                self.add(key)

    async def _run_once(self, key: K) -> None:
        try:
            after = await self._work(key)
        except Exception:
            self._failures[key] += 1
            pause = pause_after(self._failures[key], BACKOFF_SECONDS)
            logger.exception("reconcile of %s failed %d times in a row; again in %.1f s", key, self._failures[key], pause)
            self._add_later(key, pause)
            return
        self._failures.pop(key, None)
        if after is None:
            return
        if after > 0:
            self._add_later(key, after)
        else:
            self._again.add(key)

    def _add_later(self, key: K, after: float) -> None:
        due = time.monotonic() + after
        if key in self._timers and self._timers[key][0] <= due:
            return
        self._cancel_timer(key)
        handle = asyncio.get_running_loop().call_later(after, self._fire, key)
        self._timers[key] = (due, handle)

    def _fire(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)

    def _cancel_timer(self, key: K) -> None:
        if (timer := self._timers.pop(key, None)) is not None:
            timer[1].cancel()
