"""Processes that tokenise pieces of a data file."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from finetune_trainer.data.jsonl import Piece


def in_processes(encode: Callable[[Piece], Any], pieces: Iterator[Piece], processes: int) -> Iterator[Any]:
    """Encode pieces in processes of their own; give what comes out in the pieces' order, with few pieces at a time in memory.

    Raises:
        OutOfMemory: the system has killed a process.
    """
    context = multiprocessing.get_context("spawn")  # threads are running here, which a fork would not survive
    pool = ProcessPoolExecutor(processes, context, _start_process, (encode,))
    try:
        waiting = deque(pool.submit(_encode_there, piece) for piece in itertools.islice(pieces, 2 * processes))
        while waiting:
            yield waiting.popleft().result()
            waiting.extend(pool.submit(_encode_there, piece) for piece in itertools.islice(pieces, 1))
    except BrokenProcessPool:
        advice = f"lower Dataset.preprocessing_num_workers (now {processes})"
        raise OutOfMemory(f"a process that tokenised was killed, probably for lack of memory; {advice}") from None
    finally:
        pool.shutdown(cancel_futures=True)


_encode: Callable[[Piece], Any]
"""What this process encodes pieces with; set where one was started for that."""


def _start_process(encode: Callable[[Piece], Any]) -> None:
    global _encode  # noqa: PLW0603 - the tokenizer comes once for each process, not once for each piece
    _encode = encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A process whose parent was killed would wait for its next piece for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _encode_there(piece: Piece) -> Any:
    return _encode(piece)
