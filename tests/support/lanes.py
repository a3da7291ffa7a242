"""Several workers of pytest-xdist on one cluster: what they share is made once, and some tests want it for themselves.

Locks are files in a folder that all workers of a run have in common; without pytest-xdist there is one worker.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


def worker() -> str:
    """Name of this worker; empty without pytest-xdist."""
    return os.environ.get("PYTEST_XDIST_WORKER", "")


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of this run share."""
    base = factory.getbasetemp()
    return base.parent if worker() else base


@contextlib.contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a lock for the time of the block."""
    with path.open("a") as file:
        fcntl.flock(file, kind)
        yield


@contextlib.contextmanager
def shared(path: Path, make: Callable[[], None], remove: Callable[[], None]) -> Iterator[None]:
    """Something exists for the time of the block: the first worker makes it, and the last one removes it."""
    users = path.with_suffix(".users")
    with locked(path):
        count = int(users.read_text()) if users.exists() else 0
        if count == 0:
            make()
        users.write_text(str(count + 1))
    yield
    with locked(path):
        count = int(users.read_text()) - 1
        users.write_text(str(count))
        if count == 0:
            remove()


@contextlib.contextmanager
def turn(folder: Path, *, alone: bool) -> Iterator[None]:
    """Have the cluster, beside others or alone. Who wants it alone keeps newcomers back, so that its turn comes."""
    gate, door = folder / "gate.lock", folder / "door.lock"
    with contextlib.ExitStack() as stack:
        with locked(gate):
            stack.enter_context(locked(door, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        yield
