"""Read the tensors of a checkpoint, or this rank's part of them, whether one rank wrote them whole or each of some ranks a shard.

FSDP cuts a tensor along its first dimension, as torch.chunk does: each rank has as many rows but the last ones, which have
fewer, or none. So the shape of a tensor and the number of ranks say which file has which rows, and a rank that needs other
ones reads them alone from the files that have them. torch.distributed.checkpoint is not used: its metadata is a pickle.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Self

import torch
from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

    from finetune_trainer.checkpoint.identity import Identity


def rows_of(length: int, rank: int, ranks: int) -> tuple[int, int]:
    """The first row of a rank's shard of a tensor with so many rows, and the one after its last."""
    each = -(-length // ranks)
    return min(rank * each, length), min((rank + 1) * each, length)


class Shards:
    """The files with tensors of a checkpoint. A context manager."""

    def __init__(self, folder: Path, identity: Identity, rank: int) -> None:
        """Args:
        folder: the checkpoint.
        identity: how it was written.
        rank: of this process: it looks into the file of the same number first.
        """
        self._paths = [folder / name for name in identity.shards]
        self._own = min(rank, len(self._paths) - 1)
        self._files: dict[int, Any] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing.close()

    def names(self) -> set[str]:
        """Names of the tensors; each file has all of them."""
        return set(self._open(self._own).keys())

    def read(self, name: str, shape: torch.Size, first: int, last: int) -> torch.Tensor | None:
        """Rows of a tensor; None: it has another shape.

        Args:
            name: of the tensor.
            shape: of the whole tensor.
            first: the first row; 0 for a tensor without dimensions.
            last: the row after the last one.
        """
        own = self._open(self._own).get_slice(name)
        if own.get_shape() == list(shape):  # such as the number of steps, which each rank has
            whole: torch.Tensor = self._open(self._own).get_tensor(name)
            return whole[first:last] if shape else whole
        return self._join(name, shape, first, last) if shape else None

    def _join(self, name: str, shape: torch.Size, first: int, last: int) -> torch.Tensor | None:
        """Rows of a tensor from all shards that have some."""
        pieces = [torch.empty(0, *shape[1:])]
        for number in range(len(self._paths)):
            begin, end = rows_of(shape[0], number, len(self._paths))
            if max(begin, first) < min(end, last):
                part = self._open(number).get_slice(name)
                if part.get_shape() != [end - begin, *shape[1:]]:
                    return None
                pieces.append(part[max(begin, first) - begin : min(end, last) - begin])
        return torch.cat(pieces[1:]) if len(pieces) > 1 else pieces[0]

    def _open(self, number: int) -> Any:
        if number not in self._files:
            self._files[number] = self._closing.enter_context(safe_open(self._paths[number], framework="pt"))
        return self._files[number]
