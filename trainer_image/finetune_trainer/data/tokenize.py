"""From data files to tokens on disk: once for all ranks, by as many processes as there are CPUs."""

from __future__ import annotations

import itertools
import logging
import math
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.data import jsonl, prompts, sources, token_cache
from finetune_trainer.errors import OutOfMemory, output_error

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import Dataset
    from finetune_trainer.data.jsonl import Piece
    from finetune_trainer.data.sources import Source

log = logging.getLogger(__name__)

BAR = "{desc}: {percentage:3.0f}%|{bar}| {postfix}"


@dataclass(frozen=True)
class Work:
    """How data files are worked through."""

    processes: int = 1
    small_bytes: int = 2 * 2**20
    """Files up to this size, some five thousand rows, are tokenised before a second process would have started."""
    piece_bytes: int = jsonl.PIECE_BYTES
    quiet_seconds: float = 2.0
    """What takes no longer goes on without a word."""
    line_seconds: float = 5.0
    """Time between two lines that tell how far it is."""


@dataclass(frozen=True)
class Tokens:
    """Where the tokenised rows of a data file are."""

    key: str
    name: str
    """The data file as the user wrote it."""


def tokenise(run: Run, tokenizer: Any, work: Work) -> tuple[Tokens, Tokens | None]:
    """Tokenise the rows to train on and, if they are apart, those to evaluate on; or find what an earlier attempt left.

    Args:
        run: which data, and the output folder.
        tokenizer: a tokenizer of transformers.
        work: by how many processes, and the like.

    Raises:
        DatasetNotFound, DatasetInvalid: as `sources.check`, and when rows are too long.
        ConfigError: the settings leave no room for a row, or do not fit the tokenizer.
        OutputVolumeFull, OutputNotWritable: the output folder cannot take the tokens.
    """
    train, evaluation = sources.find_sources(run)
    try:
        made = _tokens(run, train, tokenizer, work), _tokens(run, evaluation, tokenizer, work) if evaluation else None
        _remove_others(
            run, {run.tokens / one.key for one in made if one} | {one.path.parent for one in (train, evaluation) if one}
        )
    except OSError as error:
        raise output_error(run.output_dir, error) from error
    return made


def count_processes(run: Run, available: float, workers_here: int = 1) -> int:
    """How many processes tokenise: as configured; else as many as there are CPUs, with Ray those of the workers.

    Args:
        run: the configuration.
        available: CPUs that this process may use.
        workers_here: workers on this host: all of them wait for this one.
    """
    asked = run.config.dataset.preprocessing_num_workers
    if asked is not None:
        return asked
    if run.config.training.num_training_workers > 1 or addresses_cluster():
        # The pods of workers have no limit: the node's other CPUs belong to others.
        available = min(available, workers_here * math.ceil(run.config.training.resources_per_worker.CPU))
    return max(1, int(available))


def _tokens(run: Run, source: Source, tokenizer: Any, work: Work) -> Tokens:
    config = run.config.dataset
    try:
        key = token_cache.key_of(source.path, tokenizer, config)
    except OSError as error:
        raise jsonl.unreadable(source.path, source.name, error) from None
    contents = token_cache.find(run.tokens, key)
    if contents is None:
        with token_cache.Draft(run.tokens, key) as draft:
            _fill(draft, source, tokenizer, config, work)
            draft.complete()
        contents = draft.contents
    _warn_of_cuts(contents, source.name, config)
    return Tokens(key, source.name)


def _fill(draft: token_cache.Draft, source: Source, tokenizer: Any, config: Dataset, work: Work) -> None:
    broken = jsonl.BrokenRows(source.name)
    size = source.path.stat().st_size
    encode = partial(encode_piece, source=source, tokenizer=tokenizer, config=config)
    alone = work.processes == 1 or size <= work.small_bytes
    with _meter(source.name, size, work) as advance:
        pieces = jsonl.pieces(source.path, source.name, work.piece_bytes)
        made = map(encode, pieces) if alone else in_processes(encode, pieces, work.processes)
        for piece, reasons, encoded in made:
            broken.add(reasons)
            if encoded is not None:
                broken.add(encoded.refused)
                draft.add(encoded)
            advance(piece.size, draft.contents.rows)
    broken.refuse()


def encode_piece(
    piece: Piece, source: Source, tokenizer: Any, config: Dataset
) -> tuple[Piece, list[tuple[int, str]], prompts.Encoded | None]:
    """Read and tokenise a piece of a data file: its broken lines, and what became of the others, if there are any."""
    there, broken = jsonl.read_piece(source.path, source.name, piece)
    return piece, broken, prompts.encode(there, tokenizer, config, source.name) if there else None


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


@contextmanager
def _meter(name: str, size: int, work: Work) -> Iterator[Callable[[int, int], None]]:
    """Tell how far the tokenising is: a bar on a terminal, a line now and then elsewhere.

    Gives a function that takes the bytes that were done since the last call, and the rows that are done in all.
    """
    if sys.stdout.isatty():
        from tqdm import tqdm

        columns, lines = shutil.get_terminal_size()
        bar = tqdm(desc=f"tokenising {name}", total=size, file=sys.stdout, delay=work.quiet_seconds, ncols=columns, nrows=lines,
                   bar_format=BAR, leave=False)  # fmt: skip

        def draw(amount: int, count: int) -> None:
            bar.set_postfix_str(f"{count} rows", refresh=False)
            bar.update(amount)

        with bar:
            yield draw
        return
    start = time.monotonic()
    done, due = 0, start + work.quiet_seconds

    def summarise(amount: int, count: int) -> None:
        nonlocal done, due
        done, now = done + amount, time.monotonic()
        if now >= due:
            due = now + work.line_seconds
            log.info("tokenising %s: %d %%, %d rows, %.0f rows/s", name, 100 * done // size, count, count / (now - start))

    yield summarise


def _warn_of_cuts(contents: token_cache.Contents, name: str, config: Dataset) -> None:
    limits = (
        ("prompts", contents.cut_prompts, f"raise Dataset.max_source_length (now {config.max_source_length})"),
        ("responses", contents.cut_responses, f"raise Dataset.max_length (now {config.max_length})"),
    )
    for what, cut, advice in limits:
        if cut.count:
            share = 100 * cut.count / contents.rows
            lines = ", ".join(map(str, cut.lines)) + (", …" if cut.count > len(cut.lines) else "")
            how_many = f"{cut.count} of {contents.rows} {what} ({share:.1f} %)"
            log.warning("%s: %s were cut to fit, in lines %s; %s", name, how_many, lines, advice)


def _remove_others(run: Run, used: set[Path]) -> None:
    """Remove what earlier starts with other data, settings or tokenizers have left."""
    copies = run.tokens / sources.COPIES
    for path in (*run.tokens.iterdir(), *copies.glob("*")):
        if path not in used and path != copies:
            shutil.rmtree(path, ignore_errors=True)


def open_tokens(run: Run, tokens: Tokens) -> prompts.Examples:
    """Map tokenised rows into the memory of this process.

    Raises:
        OSError: they cannot be read.
    """
    return token_cache.open_cache(run.tokens, tokens.key, tokens.name)
