"""Signals that end a process, while there is something to be taken away first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
"""What `timeout`, a CI and a terminal that is closed send; Python has no exception for them."""


class EndedBySignalError(SystemExit):
    """A signal ends the process; its exit code is 128 and the signal's number, as a shell has it."""


@contextmanager
def as_exceptions() -> Iterator[None]:
    """Have SIGTERM and SIGHUP end the process by an exception during the block, so that it is left in good order.

    This is done in the main thread only, which is the one that Python gives signals to, and for signals that nobody else handles.

    Raises:
        EndedBySignalError: one has come.
    """
    taken = [number for number in ENDING if signal.getsignal(number) is signal.SIG_DFL] if _is_main() else []
    for number in taken:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number in taken if _is_main() else ():
            if signal.getsignal(number) is _raise:
                signal.signal(number, signal.SIG_DFL)


@contextmanager
def held_back() -> Iterator[None]:
    """Let Ctrl-C and the signals of `as_exceptions` wait for the end of the block.

    Raises:
        KeyboardInterrupt: Ctrl-C has come meanwhile.
        EndedBySignalError: another one has.
    """
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, *ENDING)} if _is_main() else {}
    held = {number: handler for number, handler in handlers.items() if handler is signal.default_int_handler or handler is _raise}
    for number in held:
        signal.signal(number, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def _is_main() -> bool:
    return threading.current_thread() is threading.main_thread()


def _raise(number: int, _frame: FrameType | None) -> None:
    raise EndedBySignalError(128 + number)
