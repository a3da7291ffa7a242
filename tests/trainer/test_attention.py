"""All rows in one kernel is the same attention as row by row. torch's kernel needs a GPU: a plain one stands in for it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn import functional

from finetune_trainer.modeling.attention import Kernel, Segments, attend, find_kernel, flash, flash_kernel
from finetune_trainer.modeling.packed_families import alibi, bloom_slopes, mpt_slopes

LENGTHS = (5, 1, 7)


def plain(
    query: Any, key: Any, value: Any, starts: Any, longest: int, window: int | None, scaling: float, dropout: float
) -> torch.Tensor:
    """Attention over [T, H, D], written out. As the kernel, it takes heads of certain sizes only, which may share keys."""
    assert query.shape[2] == key.shape[2] == value.shape[2]
    assert query.shape[2] % 8 == 0
    ends = starts.tolist()
    assert longest == max(end - start for start, end in pairwise(ends))
    key, value = (tensor.repeat_interleave(query.shape[1] // tensor.shape[1], dim=1) for tensor in (key, value))
    rows = []
    for start, end in pairwise(ends):
        q, k, v = (tensor[start:end].transpose(0, 1) for tensor in (query, key, value))
        place = torch.arange(end - start)
        back = place[:, None] - place[None, :]
        sees = (back >= 0) & (True if window is None else back < window)
        weights = (q @ k.transpose(1, 2) * scaling).masked_fill(~sees, -torch.inf).softmax(-1)
        rows.append((functional.dropout(weights, dropout) @ v).transpose(0, 1))
    return torch.cat(rows)


@pytest.fixture
def kernel() -> Kernel:
    """A plain kernel, which computes in float32."""
    return Kernel(plain, 24, (torch.float32,))


def both(kernel: Kernel, heads: tuple[int, int], size: int, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of all rows at once, and of each row by itself."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, count, sum(LENGTHS), size) for count in (heads[0], heads[1], heads[1]))
    segments = Segments.of(LENGTHS, query.device)
    alone, _ = attend(None, query, key, value, None, segments=segments, **options)
    segments.kernel = kernel
    together, _ = attend(None, query, key, value, None, segments=segments, **options)
    assert together.shape == (1, sum(LENGTHS), heads[0], size)
    return together, alone


@pytest.mark.parametrize("size", [8, 12, 24])
@pytest.mark.parametrize("keys", [4, 2, 1])
@pytest.mark.parametrize(("window", "scaling"), [(None, None), (3, 0.3)])
def test_rows_at_once_are_rows_one_by_one(
    kernel: Kernel, keys: int, size: int, window: int | None, scaling: float | None
) -> None:
    together, alone = both(kernel, (4, keys), size, scaling=scaling, sliding_window=window)
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


def test_kernel_drops_what_the_model_says(kernel: Kernel) -> None:
    """Weights that are not dropped are doubled: what is expected is the same."""
    torch.manual_seed(0)
    query, key, value = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8), torch.rand(1, 2, 6, 8)
    segments = Segments.of((6,), query.device)
    whole = attend(None, query, key, value, None, segments=segments)[0]
    segments.kernel = kernel
    drawn = torch.stack([attend(None, query, key, value, None, dropout=0.5, segments=segments)[0] for _ in range(2000)])
    assert drawn.std(0).min() > 0.01
    torch.testing.assert_close(drawn.mean(0), whole, atol=0.06, rtol=0)


def test_head_that_the_kernel_is_too_small_for_does_without(kernel: Kernel) -> None:
    together, alone = both(Kernel(kernel.call, 16), (2, 2), 24)
    assert torch.equal(together, alone)


def test_device_that_the_kernel_is_not_made_for_does_without() -> None:
    assert flash_kernel(torch.device("cpu")) is None
    assert Segments.of(LENGTHS, torch.device("cpu")).kernel is None


@pytest.mark.parametrize(("capability", "largest"), [((7, 5), None), ((8, 0), 256), ((8, 9), 192), ((9, 0), 256), ((12, 0), 192)])
def test_gpu_that_the_kernel_is_not_made_for_does_without(capability: tuple[int, int], largest: int | None) -> None:
    found = find_kernel(capability)
    assert (found and found.head_size) == largest


def test_operator_of_torch_takes_what_it_is_given() -> None:
    """Without a GPU only shapes are computed: those of rows with shared keys, and of the gradients."""
    tensors = [torch.empty(13, heads, 64, dtype=torch.bfloat16, device="meta", requires_grad=True) for heads in (4, 2, 2)]
    starts = torch.empty(4, dtype=torch.int32, device="meta")
    made = flash(*tensors, starts, 7, 3, 0.125, 0.1)
    assert made.shape == tensors[0].shape
    gradients = torch.autograd.grad(made.sum(), tensors)
    assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in tensors]


@pytest.mark.parametrize(("slopes", "heads"), [(bloom_slopes, 16), (bloom_slopes, 12), (mpt_slopes, 32), (mpt_slopes, 6)])
def test_bias_by_distance_is_exact_in_numbers_of_eight_bits(slopes: Any, heads: int) -> None:
    positions = torch.tensor([0, 1, 255, 256, 257, 2047, 65535])
    bias = alibi(slopes, heads, 96**-0.5, positions)
    assert bias.queries.shape == (heads, 8)
    queries, keys = (part.bfloat16().double() for part in bias)
    expected = slopes(heads).double()[:, None] * positions
    torch.testing.assert_close(queries @ keys.T * 96**-0.5, expected, rtol=1e-6, atol=0)


def test_slopes_are_those_of_transformers() -> None:
    assert bloom_slopes(2).tolist() == [1 / 16, 1 / 256]
    assert mpt_slopes(2).tolist() == [1 / 16, 1 / 256]
    assert mpt_slopes(8).tolist() == [2.0**-power for power in range(1, 9)]
