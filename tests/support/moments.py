"""Act at a moment that another process would have to hit by luck: when this one asks the system for something."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_watchers: list[Callable[[str, tuple[Any, ...]], None]] = []


def _tell(event: str, arguments: tuple[Any, ...]) -> None:
    for watcher in tuple(_watchers):
        watcher(event, arguments)


sys.addaudithook(_tell)


@contextmanager
def just_before(event: str, act: Callable[..., None]) -> Iterator[None]:
    """Call a function with the arguments of each audit event of this name, before the system is asked.

    The events: https://docs.python.org/3/library/audit_events.html.
    """

    def watch(name: str, arguments: tuple[Any, ...]) -> None:
        if name == event:
            act(*arguments)

    _watchers.append(watch)
    try:
        yield
    finally:
        _watchers.remove(watch)
