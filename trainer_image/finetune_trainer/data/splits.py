"""Which rows are trained on, and which ones are evaluated."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_trainer.data.examples import Examples


@dataclass(frozen=True)
class Data:
    """The tokenised rows of a run, to train on and to evaluate on."""

    train: Examples
    train_rows: NDArray[np.int64]
    """Numbers of the rows in `train` that are trained on."""
    eval: Examples
    eval_rows: NDArray[np.int64]
    """Numbers of the rows in `eval` that are evaluated."""
    pad: int

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return int(max(self.train.lengths.max(), self.eval.lengths.max()))


def split_rows(lines: NDArray[np.int64], percentage: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Split examples, given by their lines, into those to train on and those to evaluate on, both in the file's order.

    The number of evaluation rows is rounded up, as in llm-on-ray. At least one row is left to train on. The blocks of a
    long text stay together.
    """
    rows, row_of = np.unique(lines, return_inverse=True)
    count_eval = min(math.ceil(len(rows) * percentage / 100), len(rows) - 1)
    evaluated = np.zeros(len(rows), dtype=bool)
    evaluated[np.random.default_rng(seed).permutation(len(rows))[:count_eval]] = True
    return np.flatnonzero(~evaluated[row_of]), np.flatnonzero(evaluated[row_of])
