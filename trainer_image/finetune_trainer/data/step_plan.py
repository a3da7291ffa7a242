"""Which rows make up which batch on which rank.

Every rank computes the same plan from the seed, so each one knows the number of supervised tokens of a step without
asking the others. A global batch is formed first and then split across the ranks: the result of a step does not depend on
the number of workers. So a run may go on with other ranks than it began with, and its steps keep their rows.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from finetune_trainer.config.schema import TrainerConfig

    Micro = tuple[tuple[NDArray[np.int64], ...], ...]


WINDOW = 50
"""Number of global batches whose rows are sorted by length together. Rows of similar length share a batch, and the order
of the batches stays random. Larger windows save little more padding."""


@dataclass(frozen=True)
class Step:
    """One optimizer step: its micro-batches, each as the row numbers of every rank."""

    epoch: float
    """Passes over the rows once this step is done."""
    micro: tuple[tuple[NDArray[np.int64], ...], ...]
    """For each micro-batch, for each rank: numbers of its rows."""
    ends_epoch: bool = False


def total_steps(lengths: NDArray[np.int64], workers: int, config: TrainerConfig) -> int:
    """Optimizer steps of the whole run, over rows of these lengths."""
    training = config.training
    return training.max_train_steps or training.epochs * steps_per_epoch(lengths, workers, config)


def steps_per_epoch(lengths: NDArray[np.int64], workers: int, config: TrainerConfig) -> int:
    """Optimizer steps of an epoch; the budget of tokens makes as many steps with any number of workers."""
    training = config.training
    if training.tokens_per_step is not None:
        return min(len(lengths), math.ceil(int(lengths.sum()) / training.tokens_per_step))
    batches = math.ceil(len(lengths) / (training.batch_size * workers))
    return math.ceil(batches / training.gradient_accumulation_steps)


def plan_steps(
    lengths: NDArray[np.int64],
    workers: int,
    config: TrainerConfig,
    done: int = 0,
    *,
    by_length: bool = False,
    made_for: int | None = None,
) -> Iterator[Step]:
    """An endless sequence of steps: epoch after epoch, each with every row once.

    Args:
        lengths: tokens of each row.
        workers: number of ranks.
        config: sizes, order and seed.
        done: steps that are skipped at the start, since a checkpoint includes them.
        by_length: whether rows of similar length share a batch, to reduce padding.
        made_for: number of ranks that the steps were made for, if the run has begun with another number; None: with this one.
    """
    planned = made_for or workers
    epoch, skipped = divmod(done, steps_per_epoch(lengths, planned, config))
    plan_epoch = _epoch_by_rows if config.training.tokens_per_step is None else _epoch_by_tokens
    while True:
        rng = np.random.default_rng((config.training.seed, epoch)) if config.dataset.shuffle else None
        for share, micro in plan_epoch(_Epoch(lengths, planned, config, rng, by_length), skipped):
            spread = micro if planned == workers else spread_out(micro, lengths, workers, config, by_length=by_length)
            yield Step(epoch + share, spread, ends_epoch=share == 1)
        epoch, skipped = epoch + 1, 0


@dataclass(frozen=True)
class _Epoch:
    """What an epoch is planned for."""

    lengths: NDArray[np.int64]
    workers: int
    config: TrainerConfig
    rng: np.random.Generator | None
    by_length: bool


def _epoch_by_rows(epoch: _Epoch, skipped: int) -> Iterator[tuple[float, Micro]]:
    """The steps of an epoch whose batches have a number of rows, each with the part of the epoch that is done after it."""
    training = epoch.config.training
    size, accumulate = training.batch_size * epoch.workers, training.gradient_accumulation_steps
    order, batches = _epoch(epoch.lengths, size, epoch.rng, by_length=epoch.by_length)
    for start in range(skipped * accumulate, len(batches), accumulate):
        taken = batches[start : start + accumulate]
        rows = (order[size * batch : size * (batch + 1)] for batch in taken)
        micro = tuple(split_across_ranks(batch, epoch.lengths, epoch.workers) for batch in rows)
        yield (start + len(taken)) / len(batches), micro


def _epoch_by_tokens(epoch: _Epoch, skipped: int) -> Iterator[tuple[float, Micro]]:
    """The same, of an epoch whose steps have a number of tokens."""
    lengths, workers = epoch.lengths, epoch.workers
    steps = steps_per_epoch(lengths, workers, epoch.config)
    # A window of the order has about as many steps as one by rows has batches.
    order, _ = _epoch(lengths, math.ceil(len(lengths) / steps), epoch.rng, by_length=epoch.by_length)
    cuts = cut_evenly(lengths[order], steps)
    numbers = epoch.rng.permutation(steps) if epoch.rng is not None and epoch.by_length else np.arange(steps)
    for done, number in enumerate(numbers[skipped:], start=skipped + 1):
        rows = order[cuts[number] : cuts[number + 1]]
        parts = balance(rows, lengths, epoch.config.training.gradient_accumulation_steps * workers)
        yield done / steps, tuple(tuple(parts[start : start + workers]) for start in range(0, len(parts), workers))


def spread_out(step: Micro, lengths: NDArray[np.int64], workers: int, config: TrainerConfig, *, by_length: bool) -> Micro:
    """Spread the rows of a step that was made for another number of ranks: a rank has no more of them at once than it would have
    had there, so that it needs no more memory.
    """
    rows = np.concatenate([share for micro in step for share in micro])
    count = math.ceil(len(step) * len(step[0]) / workers)
    by_tokens = config.training.tokens_per_step is not None
    if by_length and not by_tokens:
        ordered = rows[np.argsort(-lengths[rows], kind="stable")]
        made = [split_across_ranks(piece, lengths, workers) for piece in np.array_split(ordered, count)]
    else:
        parts = (balance if by_tokens else split_across_ranks)(rows, lengths, count * workers)
        made = [tuple(parts[start : start + workers]) for start in range(0, len(parts), workers)]
    return tuple(micro for micro in made if any(map(len, micro)))


def cut_evenly(lengths: NDArray[np.int64], pieces: int) -> NDArray[np.int64]:
    """Where to cut a sequence of rows into pieces of about the same tokens, each with a row at least; both ends included."""
    ends, number = np.concatenate([[0], np.cumsum(lengths)]), np.arange(pieces + 1)
    wanted = ends[-1] * number / pieces
    after = np.searchsorted(ends, wanted)
    cuts = np.where(wanted - ends[after - 1] < ends[after] - wanted, after - 1, after)
    cuts = np.maximum.accumulate(np.maximum(cuts, number) - number) + number
    made: NDArray[np.int64] = np.minimum(cuts, len(lengths) - pieces + number)
    return made


def balance(rows: NDArray[np.int64], lengths: NDArray[np.int64], parts: int) -> list[NDArray[np.int64]]:
    """Split rows into parts of about the same tokens: each row, the longest first, where there are fewest."""
    loads = [(0, part) for part in range(parts)]
    chosen: list[list[int]] = [[] for _ in range(parts)]
    for row in rows[np.argsort(-lengths[rows], kind="stable")]:
        load, part = loads[0]
        chosen[part].append(int(row))
        heapq.heapreplace(loads, (load + int(lengths[row]), part))
    return [np.array(part, dtype=np.int64) for part in chosen]


def _epoch(
    lengths: NDArray[np.int64], size: int, rng: np.random.Generator | None, *, by_length: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The order of the rows, which are taken `size` at a time, and the order of the resulting batches."""
    order = np.arange(len(lengths)) if rng is None else rng.permutation(len(lengths))
    batches = np.arange(math.ceil(len(order) / size))
    if rng is None or not by_length:
        return order, batches
    for start in range(0, len(order), size * WINDOW):
        window = order[start : start + size * WINDOW]
        order[start : start + size * WINDOW] = window[np.argsort(-lengths[window], kind="stable")]
    return order, rng.permutation(len(batches))


def split_across_ranks(batch: NDArray[np.int64], lengths: NDArray[np.int64], workers: int) -> tuple[NDArray[np.int64], ...]:
    """Split a global batch across the ranks: the longest rows first, forwards then backwards, so that the work is even."""
    ordered = batch[np.argsort(-lengths[batch], kind="stable")]
    turn = np.arange(len(ordered)) % (2 * workers)
    rank = np.minimum(turn, 2 * workers - 1 - turn)
    return tuple(ordered[rank == worker] for worker in range(workers))
