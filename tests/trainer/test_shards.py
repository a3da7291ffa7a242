"""Tensors that some ranks wrote are read by any other number of them."""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import save_file

from finetune_trainer.checkpoint.identity import Identity
from finetune_trainer.checkpoint.shards import Shards, rows_of

if TYPE_CHECKING:
    from pathlib import Path

RANKS = (1, 2, 3, 4, 7)
SHAPES = {"matrix": (10, 3), "few rows": (2, 4), "one row": (1, 5), "vector": (9,), "no rows": (0, 2), "number": ()}
WHOLE = {name: torch.rand(shape) if shape else torch.tensor(5.0) for name, shape in SHAPES.items()}


def written_by(ranks: int, folder: Path) -> Identity:
    """A checkpoint that so many ranks wrote, each its shards as torch.chunk makes them; a number is not cut."""
    identity = Identity(run="r", configuration="c", world_size=ranks, strategy="FSDP")
    for rank, name in enumerate(identity.shards):
        shards = {}
        for key, tensor in WHOLE.items():
            pieces = tensor.chunk(ranks) if tensor.dim() else (tensor,) * ranks
            shards[key] = pieces[rank].clone() if rank < len(pieces) else tensor[:0].clone()
        save_file(shards, folder / name)
    return identity


@pytest.mark.parametrize(("wrote", "read"), list(product(RANKS, RANKS)))
def test_any_number_of_ranks_reads_what_another_wrote(tmp_path: Path, wrote: int, read: int) -> None:
    identity = written_by(wrote, tmp_path)
    for rank in range(read):
        with Shards(tmp_path, identity, rank) as files:
            assert files.names() == WHOLE.keys()
            for name, tensor in WHOLE.items():
                first, last = rows_of(tensor.shape[0] if tensor.dim() else 0, rank, read)
                found = files.read(name, tensor.shape, first, last)
                assert found is not None
                assert torch.equal(found, tensor[first:last] if tensor.dim() else tensor)


def test_shards_of_all_ranks_are_the_whole() -> None:
    for length, ranks in product(range(12), RANKS):
        cuts = [rows_of(length, rank, ranks) for rank in range(ranks)]
        assert [end for _, end in cuts[:-1]] == [begin for begin, _ in cuts[1:]]
        assert (cuts[0][0], cuts[-1][1]) == (0, length)


@pytest.mark.parametrize("shape", [(11, 3), (10, 4), (10,), (), (5, 3)])
def test_tensor_of_another_shape_is_none(tmp_path: Path, shape: tuple[int, ...]) -> None:
    identity = written_by(3, tmp_path)
    with Shards(tmp_path, identity, 0) as files:
        assert files.read("matrix", torch.Size(shape), 0, shape[0] if shape else 0) is None
