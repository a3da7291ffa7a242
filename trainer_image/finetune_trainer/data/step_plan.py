"""Which rows make up which batch on which rank.

Every rank computes the same plan from the seed, so each one knows the number of supervised tokens of a step without
asking the others. A global batch is formed first and then split across the ranks: the result of a step does not depend on
the number of workers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from finetune_trainer.config.schema import TrainerConfig


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


def total_steps(rows: int, workers: int, config: TrainerConfig) -> int:
    """Optimizer steps of the whole run."""
    training = config.training
    micro = math.ceil(rows / (training.batch_size * workers))
    return training.max_train_steps or training.epochs * math.ceil(micro / training.gradient_accumulation_steps)


def plan_steps(
    lengths: NDArray[np.int64], workers: int, config: TrainerConfig, done: int = 0, *, by_length: bool = False
) -> Iterator[Step]:
    """An endless sequence of steps: epoch after epoch, each with every row once.

    Args:
        lengths: tokens of each row.
        workers: number of ranks.
        config: sizes, order and seed.
        done: steps that are skipped at the start, since a checkpoint includes them.
        by_length: whether rows of similar length share a batch, to reduce padding.
    """
    training, dataset = config.training, config.dataset
    size, accumulate = training.batch_size * workers, training.gradient_accumulation_steps
    epoch, taken_before = divmod(done, math.ceil(math.ceil(len(lengths) / size) / accumulate))
    while True:
        rng = np.random.default_rng((training.seed, epoch)) if dataset.shuffle else None
        order, batches = _epoch(lengths, size, rng, by_length=by_length)
        for start in range(taken_before * accumulate, len(batches), accumulate):
            end = min(start + accumulate, len(batches))
            micro = tuple(
                split_across_ranks(order[size * batch : size * (batch + 1)], lengths, workers) for batch in batches[start:end]
            )
            yield Step(epoch + end / len(batches), micro, ends_epoch=end == len(batches))
        epoch, taken_before = epoch + 1, 0


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
