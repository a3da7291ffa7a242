"""Work that goes on beside the steps of a run, in a thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Made = TypeVar("Made")


def in_background(name: str, make: Callable[[], Made]) -> Future[Made]:
    """Make a value in a thread of this name.

    The threads of an executor would keep the process from ending until they have ended, and a second signal ends it at once.
    """
    made: Future[Made] = Future()

    def run() -> None:
        try:
            made.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the value is told
            made.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return made
