"""Make the tensors of a batch: rows that are packed without padding, or padded to one length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from finetune_trainer.data.examples import Examples

IGNORED = -100
"""Target of a position without loss: the value that cross entropy ignores by default."""

MULTIPLE = 8
"""Batches are padded to a multiple of this: vector units and tensor cores work on such lengths."""


@dataclass(frozen=True)
class Batch:
    """Tensors of the rows of one forward pass on one rank, B rows of T positions."""

    input_ids: torch.Tensor
    """[B, T], int64."""
    targets: torch.Tensor
    """[B, T], int64: the token to be predicted at each position, or IGNORED."""
    attention_mask: torch.Tensor | None = None
    """[B, T], int64; None: padding is on the right, which causal attention ignores."""
    position_ids: torch.Tensor | None = None
    """[B, T], int64; None: counted from the left."""
    packed: tuple[int, ...] = ()
    """Lengths of the rows that are packed into one line, in tokens; empty: each row has a line of its own."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device."""
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {name: tensor.to(device, non_blocking=True) for name, tensor in tensors.items()}
        return replace(self, **moved)


def pack(examples: Examples, rows: NDArray[np.int64]) -> Batch:
    """Pack rows: make tensors of one line that holds one row after the other, each with positions from 0.

    Args:
        examples: all rows.
        rows: numbers of the rows in the batch; if empty, row 0 is used without any loss, as in `collate`.
    """
    taken = [examples.row(int(index)) for index in rows] or [examples.row(0)]
    lengths = [len(ids) for ids in taken]
    targets = np.full(sum(lengths), IGNORED, dtype=np.int64)
    start = 0
    for row, ids in zip(rows, taken, strict=False):
        first, last = examples.first[row], examples.last[row]
        targets[start + first - 1 : start + last - 1] = ids[first:last]
        start += len(ids)
    lines = (np.concatenate(taken).astype(np.int64), targets, np.concatenate([np.arange(length) for length in lengths]))
    input_ids, wanted, positions = (torch.from_numpy(line)[None] for line in lines)
    return Batch(input_ids, wanted, None, positions, tuple(lengths))


def batches_with_one_target() -> tuple[Batch, Batch]:
    """Two batches of two packed rows each: the first rows differ, and only the last token of the second row is a target."""
    positions = torch.arange(MULTIPLE).repeat(2)[None]
    one = positions + 1
    other = torch.cat([one[:, :MULTIPLE].flip(1), one[:, MULTIPLE:]], dim=1)
    targets = torch.full_like(one, IGNORED)
    targets[0, -1] = 1
    first, second = (Batch(ids, targets, None, positions, (MULTIPLE, MULTIPLE)) for ids in (one, other))
    return first, second


def collate(examples: Examples, rows: NDArray[np.int64], pad: int, side: str, longest: int | None) -> Batch:
    """Make the tensors of rows that are padded to the longest of them.

    Args:
        examples: all rows.
        rows: numbers of the rows in the batch; if empty, row 0 is used without any loss, so that a rank without rows
            at the end of an epoch still takes part in the reduction of gradients.
        pad: id of the padding; its positions are masked, so any token may be used.
        side: left or right.
        longest: number of positions of the model, at least the length of a row; None: no limit.
    """
    taken = [examples.row(int(index)) for index in rows] or [examples.row(0)]
    width = math.ceil(max(len(ids) for ids in taken) / MULTIPLE) * MULTIPLE
    width = min(width, longest or width)
    input_ids = np.full((len(taken), width), pad, dtype=np.int64)
    targets = np.full((len(taken), width), IGNORED, dtype=np.int64)
    mask = np.zeros((len(taken), width), dtype=np.int64)
    for line, ids in enumerate(taken):
        offset = width - len(ids) if side == "left" else 0
        input_ids[line, offset : offset + len(ids)] = ids
        mask[line, offset : offset + len(ids)] = 1
        if len(rows):
            first, last = examples.first[rows[line]], examples.last[rows[line]]
            targets[line, offset + first - 1 : offset + last - 1] = ids[first:last]
    if side == "right":
        return Batch(torch.from_numpy(input_ids), torch.from_numpy(targets))
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return Batch(torch.from_numpy(input_ids), torch.from_numpy(targets), torch.from_numpy(mask), torch.from_numpy(positions))
