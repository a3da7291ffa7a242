"""All rows in one kernel is the same attention as row by row. torch's kernel needs a GPU: a plain one stands in for it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from finetune_trainer.modeling.attention import Kernel, Segments, _at_once, attend, find_kernel, flash_kernel

LENGTHS = (5, 1, 7)


def plain(
    query: Any, key: Any, value: Any, starts: Any, longest: int, scale: float | None, window: tuple[int, int]
) -> torch.Tensor:
    """Attention over [T, H, D], written out."""
    assert query.shape == key.shape == value.shape
    ends = starts.tolist()
    assert longest == max(end - start for start, end in pairwise(ends))
    rows = []
    for start, end in pairwise(ends):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        place = torch.arange(end - start)
        back = place[:, None] - place[None, :]
        sees = (back >= -window[1]) & ((back <= window[0]) if window[0] >= 0 else True)
        scores = (q @ k.transpose(1, 2)) * (1 / math.sqrt(q.shape[-1]) if scale is None else scale)
        rows.append((scores.masked_fill(~sees, -torch.inf).softmax(-1) @ v).transpose(0, 1))
    return torch.cat(rows)


def old(q: Any, k: Any, v: Any, q_at: Any, k_at: Any, q_max: int, k_max: int, *, scale: Any = None, window_size: Any) -> Any:
    """As torch 2.11 has it: all heads of the queries have keys of their own."""
    assert q_at is k_at
    assert q_max == k_max
    return plain(q, k, v, q_at, q_max, scale, window_size)


def new(q: Any, k: Any, v: Any, *where: Any, scale: Any = None, window_size: Any, enable_gqa: bool = False) -> Any:
    """The signature of later releases: heads may share keys if `enable_gqa` is set."""
    assert enable_gqa == (q.shape[1] != k.shape[1])
    k, v = (tensor.repeat_interleave(q.shape[1] // tensor.shape[1], dim=1) for tensor in (k, v))
    return old(q, k, v, *where, scale=scale, window_size=window_size)


@pytest.mark.parametrize("kernel", [Kernel(old, shares_keys=False), Kernel(new, shares_keys=True)])
@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize(("window", "scaling"), [(None, None), (3, 0.3)])
def test_rows_at_once_are_rows_one_by_one(kernel: Kernel, keys: int, window: int | None, scaling: float | None) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, heads, sum(LENGTHS), 8) for heads in (4, keys, keys))
    segments = Segments.of(LENGTHS, query.device)
    alone, _ = attend(None, query, key, value, None, scaling, segments=segments, sliding_window=window)
    together = _at_once(kernel, query, key, value, segments, scaling, window)
    assert together.shape == (1, sum(LENGTHS), 4, 8)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_device_that_the_kernel_is_not_made_for_does_without() -> None:
    assert flash_kernel(torch.device("cpu")) is None
    assert Segments.of(LENGTHS, torch.device("cpu")).kernel is None


@pytest.mark.parametrize(("capability", "taken"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpu_that_the_kernel_is_not_made_for_does_without(capability: tuple[int, int], taken: bool) -> None:
    assert (find_kernel(capability) is not None) == taken
