"""Work that goes on beside the steps of a run, in a thread."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

Made = TypeVar("Made")


class InBackground(Generic[Made]):
    """A value that a thread makes.

    The threads of an executor would keep the process from ending until they have ended, and a second signal ends it at once.
    """

    def __init__(self, name: str, make: Callable[[], Made]) -> None:
        """Begin to make it, in a thread of this name."""
        self._made: Future[Made] = Future()
        self._thread = threading.Thread(target=self._run, args=(make,), name=name, daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        """Whether the thread has ended."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Wait until the thread has ended, and has let go of all that it held.

        The value alone is too early: a thread that frees a tensor while Python ends aborts the process.
        """
        self._thread.join()

    def result(self) -> Made:
        """Wait for the value; what went wrong there is raised here."""
        self.wait()
        return self._made.result()

    def _run(self, make: Callable[[], Made]) -> None:
        try:
            self._made.set_result(make())
        except BaseException as error:  # noqa: BLE001 - whoever waits for the value is told
            self._made.set_exception(error)
