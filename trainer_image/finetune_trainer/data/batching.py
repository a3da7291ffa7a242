"""Make the tensors of a batch: rows that are packed without padding, or padded to one length."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    from finetune_trainer.data.examples import Examples

MULTIPLE = 8
"""Batches are padded to a multiple of this: vector units and tensor cores work on such lengths."""


@dataclass(frozen=True)
class Batch:
    """Tensors of the rows of one forward pass on one rank, B rows of T positions."""

    input_ids: torch.Tensor
    """[B, T], int64."""
    places: torch.Tensor
    """[N], int64: the supervised positions, counted through all lines. They are found on the host: a GPU that looks for them
    makes the host wait for their number."""
    targets: torch.Tensor
    """[N], int64: the token to be predicted at each of them."""
    attention_mask: torch.Tensor | None = None
    """[B, T], int64; None: padding is on the right, which causal attention ignores."""
    position_ids: torch.Tensor | None = None
    """[B, T], int64; None: counted from the left."""
    packed: tuple[int, ...] = ()
    """Lengths of the rows that are packed into one line, in tokens; empty: each row has a line of its own."""
    starts: torch.Tensor | None = None
    """[rows + 1], int32: where each packed row starts, and where the last one ends; None: the rows are not packed."""
    longest: int = 0
    """No packed row of any batch of the run is longer. It is the same for all of them: a compiled layer holds it."""

    def to(self, device: torch.device) -> Batch:
        """The same batch on another device. The copy to a GPU does not wait for what the GPU computes."""
        pins = device.type == "cuda"
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, torch.Tensor)}
        moved: dict[str, Any] = {
            name: (tensor.pin_memory() if pins else tensor).to(device, non_blocking=True) for name, tensor in tensors.items()
        }
        return replace(self, **moved)


def pack(examples: Examples, rows: NDArray[np.int64], longest: int = 0) -> Batch:
    """Pack rows: make tensors of one line that holds one row after the other, each with positions from 0.

    Args:
        examples: all rows.
        rows: numbers of the rows in the batch; if empty, row 0 is used without any loss, as in `collate`.
        longest: of all rows, in tokens; 0: of these.
    """
    taken = [examples.row(int(index)) for index in rows] or [examples.row(0)]
    lengths = [len(ids) for ids in taken]
    starts = np.cumsum([0, *lengths])
    places, targets = _supervised(examples, rows, taken, starts)
    input_ids, positions = np.concatenate(taken).astype(np.int64), np.concatenate([np.arange(length) for length in lengths])
    return Batch(
        torch.from_numpy(input_ids)[None],
        places,
        targets,
        None,
        torch.from_numpy(positions)[None],
        tuple(lengths),
        torch.from_numpy(starts.astype(np.int32)),
        longest or max(lengths),
    )


def _supervised(
    examples: Examples, rows: NDArray[np.int64], taken: list[NDArray[np.int32]], starts: Iterable[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The supervised positions, and their targets, of rows that start at these positions."""
    places, targets = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    for row, ids, start in zip(rows, taken, starts, strict=False):
        first, last = int(examples.first[row]), int(examples.last[row])
        if first < last:
            places.append(np.arange(start + first - 1, start + last - 1))
            targets.append(ids[first:last].astype(np.int64))
    return torch.from_numpy(np.concatenate(places)), torch.from_numpy(np.concatenate(targets))


def batches_with_one_target() -> tuple[Batch, Batch]:
    """Two batches of two packed rows each: the first rows differ, and only the last token of the second row is a target."""
    positions = torch.arange(MULTIPLE).repeat(2)[None]
    one = positions + 1
    other = torch.cat([one[:, :MULTIPLE].flip(1), one[:, MULTIPLE:]], dim=1)
    places, targets = torch.tensor([2 * MULTIPLE - 1]), torch.ones(1, dtype=torch.int64)
    starts = torch.tensor([0, MULTIPLE, 2 * MULTIPLE], dtype=torch.int32)
    packed = ((MULTIPLE, MULTIPLE), starts, MULTIPLE)
    first, second = (Batch(ids, places, targets, None, positions, *packed) for ids in (one, other))
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
    mask = np.zeros((len(taken), width), dtype=np.int64)
    starts = []
    for line, ids in enumerate(taken):
        offset = width - len(ids) if side == "left" else 0
        input_ids[line, offset : offset + len(ids)] = ids
        mask[line, offset : offset + len(ids)] = 1
        starts.append(line * width + offset)
    places, targets = _supervised(examples, rows, taken, starts)
    if side == "right":
        return Batch(torch.from_numpy(input_ids), places, targets)
    positions = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    return Batch(torch.from_numpy(input_ids), places, targets, torch.from_numpy(mask), torch.from_numpy(positions))
