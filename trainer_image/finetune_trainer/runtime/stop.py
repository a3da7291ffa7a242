"""The request to stop: SIGTERM, SIGINT, SIGHUP or SIGQUIT to the command, or a file that anyone may make.

The driver tells the workers by the file, since they share only the output volume. Rank 0 looks for it after each optimizer
step; all ranks then write a checkpoint, and the command ends with a special exit code.
"""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from finetune_trainer.tracking.progress import PROGRESS_FILE, read_progress

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

STOP_FILE = "stop"
"""Name of the file below ``<output_dir>/logs``. The command removes it when it starts."""

STOPPED_EXIT_CODE = 75
"""EX_TEMPFAIL of sysexits.h: the same command resumes the run later."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class StoppedEarly(BaseException):
    """A request to stop came before the first step: there is nothing to save."""


def requested(logs: Path) -> bool:
    """Whether a stop is requested."""
    return (logs / STOP_FILE).exists()


def clear(logs: Path) -> None:
    """Remove an earlier request.

    Raises:
        OSError: the folder is not writable.
    """
    (logs / STOP_FILE).unlink(missing_ok=True)


@contextmanager
def on_signal(logs: Path, check: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn the first signal into a request to stop; a second one ends the process at once.

    SIGHUP stays ignored where it is ignored: that is how `nohup` lets a command outlive its terminal.

    Args:
        logs: the folder `logs` of the output folder.
        check: raises an error if the folder is another run's by now, which must not be stopped.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
        received.append(number)
        check()
        try:
            (logs / STOP_FILE).touch()
        except OSError:
            raise SystemExit(128 + number) from None
        if len(received) > 1:
            raise SystemExit(128 + number)
        if not _is_training(logs):
            raise StoppedEarly

    received: list[int] = []
    before = {number: signal.signal(number, handle) for number in heeded()}
    try:
        yield
    finally:
        restore(before)


def heeded() -> list[signal.Signals]:
    """The signals that stop a run; not the hang-up where it is ignored, as nohup has it."""
    return [number for number in SIGNALS if (number, signal.getsignal(number)) != (signal.SIGHUP, signal.SIG_IGN)]


@contextmanager
def kept_from_children() -> Iterator[None]:
    """Start processes that a terminal does not stop with this one: its interrupt, quit and hang-up reach all its processes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGQUIT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handlers() -> dict[signal.Signals, Any]:
    """The current handlers, for `restore`: Ray sets its own."""
    return {number: signal.getsignal(number) for number in SIGNALS}


def restore(before: dict[signal.Signals, Any]) -> None:
    """Set handlers again."""
    for number, handler in before.items():
        signal.signal(number, handler)


def _is_training(logs: Path) -> bool:
    """Whether the loop takes steps and will see the request; also if the file, which another host replaces, cannot be read."""
    try:
        progress = read_progress(logs / PROGRESS_FILE)
    except (OSError, ValueError):
        return True
    return progress is not None and progress.state != "starting"
