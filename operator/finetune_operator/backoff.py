"""Pauses before something is tried again: each is twice the previous one, up to a limit, with jitter."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")

Limits = tuple[float, float]
"""First and longest pause in seconds."""


def pause_after(failures: int, limits: Limits) -> float:
    """Seconds to wait after so many failures in a row, the first being 1."""
    first, longest = limits
    pause: float = min(first * 2 ** min(failures - 1, 16), longest)
    return pause * random.uniform(0.75, 1.25)  # noqa: S311 - no secret


@dataclass
class _Tried(Generic[R]):
    times: int
    again_at: float
    result: R | None = None


class Repeats(Generic[K, R]):
    """When the actions for a key may be repeated, and what came of them. An action that is decided again and again has not
    had its effect, whatever the answer was.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._tried: dict[K, dict[Hashable, _Tried[R]]] = {}

    def wait(self, key: K, action: Hashable) -> float:
        """Seconds until an action may be tried; 0: now."""
        tried = self._tried.get(key, {}).get(action)
        return max(tried.again_at - _now(), 0.0) if tried else 0.0

    def begin(self, key: K, action: Hashable) -> None:
        """Record that an action is tried now."""
        actions = self._tried.setdefault(key, {})
        times = actions[action].times + 1 if action in actions else 1
        actions[action] = _Tried(times, _now() + pause_after(times, self._limits))

    def end(self, key: K, action: Hashable, result: R | None) -> None:
        """Keep what came of an action that has begun."""
        self._tried[key][action].result = result

    def result(self, key: K, action: Hashable) -> R | None:
        """What came of an action when it was last tried."""
        tried = self._tried.get(key, {}).get(action)
        return tried.result if tried else None

    def forget(self, key: K) -> None:
        """Forget the actions for a key that is gone."""
        self._tried.pop(key, None)


def _now() -> float:
    return asyncio.get_running_loop().time()
