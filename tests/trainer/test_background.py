"""Work beside the steps of a run: its value, its failure, and what its thread still holds."""

from __future__ import annotations

import threading

import pytest

from finetune_trainer.runtime.background import InBackground


class SlowToRelease:
    """Something that takes half a second to be freed, as tensors of a busy process may."""

    def __init__(self, begin: threading.Event, released: threading.Event) -> None:
        """Wait for the first event before the work; set the second one when this has been freed."""
        self.begin, self.released = begin, released

    def size(self) -> int:
        """A value that the thread makes of it."""
        self.begin.wait(60)
        return 7

    def __del__(self) -> None:
        """Be freed, late."""
        threading.Event().wait(0.5)
        self.released.set()


def test_thread_holds_nothing_any_more_when_its_value_is_there() -> None:
    begin, released = threading.Event(), threading.Event()
    task = InBackground("work", SlowToRelease(begin, released).size)
    begin.set()
    assert task.result() == 7
    assert released.is_set()
    assert task.done


def test_failure_is_raised_where_the_value_is_asked_for() -> None:
    def fail() -> None:
        raise OSError(28, "no space")

    task = InBackground("work", fail)
    task.wait()
    with pytest.raises(OSError, match="no space"):
        task.result()


def test_work_is_not_done_before_its_thread_has_ended() -> None:
    let = threading.Event()
    task = InBackground("work", lambda: let.wait(60))
    assert not task.done
    let.set()
    assert task.result()
