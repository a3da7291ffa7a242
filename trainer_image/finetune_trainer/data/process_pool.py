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
    """Encode pieces in other processes; yield the results in the pieces' order, with few pieces in memory at a time.

    Raises:
        OutOfMemory: the system has killed a process.
    """
    context = multiprocessing.get_context("spawn")  # this process has threads, so it must not fork
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
"""The function that encodes pieces in a process of the pool."""


def _start_process(encode: Callable[[Piece], Any]) -> None:
    global _encode  # noqa: PLW0603 - the tokenizer is sent once to each process, not with each piece
    _encode = encode
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this process when its parent ends: otherwise it would wait forever for its next piece."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)


def _encode_there(piece: Piece) -> Any:
    return _encode(piece)
