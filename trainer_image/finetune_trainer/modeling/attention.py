"""Causal attention over packed rows: one line holds several rows without padding, and no row attends to another.

It is registered with transformers, whose models use it like their own implementations. Without `Segments` it is the same
as `sdpa` without a mask, so that a model can generate, one prompt at a time.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

if TYPE_CHECKING:
    from collections.abc import Callable

NAME = "finetune_segments"
"""Its name for `set_attn_implementation`."""

FLASH_TYPES = (torch.float16, torch.bfloat16)
"""Types that the kernel for all rows at once supports."""

FLASH_CAPABILITY = (8, 0)
"""CUDA's compute capability that the kernel needs, Ampere's: https://github.com/Dao-AILab/flash-attention."""

FLASH_HEAD_SIZE = 256
"""Size of the largest head that the kernel supports."""


class Kernel(NamedTuple):
    """The flash attention of torch for rows of different lengths."""

    call: Callable[..., Any]
    shares_keys: bool
    """Whether several heads of queries may share a head of keys, as of torch 2.12."""


@dataclass
class Segments:
    """The positions of the rows in a line, and what computes attention over them.

    It is not frozen: torch would compile a layer anew for each value in a frozen one, even for those that the layer ignores.
    """

    lengths: tuple[int, ...]
    """Tokens of each row."""
    starts: torch.Tensor
    """[rows + 1], int32, on the model's device: where each row starts, and where the last one ends."""
    longest: int
    """No row is longer."""
    kernel: Kernel | None = None
    """For all rows at once; None: this torch or this device has none."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Segments:
        """Rows of these lengths."""
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        return cls(lengths, starts, max(lengths), flash_kernel(device))


def attend(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    segments: Segments | None = None,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as transformers calls it.

    Args:
        module: the layer of the model.
        query: [1, H, T, D].
        key: [1, K, T, D]; H is a multiple of K.
        value: as key.
        attention_mask: None, unless the model is used outside of training.
        scaling: factor of the scores; None: 1 / √D.
        dropout: probability for the weights.
        segments: the positions of the rows; None: the line is one row.
        sliding_window: positions that a token sees, itself included; None: all before it.
        others: for other implementations.

    Returns:
        [1, T, H, D], and no weights.
    """
    if segments is None:
        attended: torch.Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **others)[0]
        return attended, None
    if query.is_cuda and torch.is_autocast_enabled("cuda"):
        lower = torch.get_autocast_dtype("cuda")
        query, key, value = query.to(lower), key.to(lower), value.to(lower)
    if segments.kernel is not None and not dropout and query.dtype in FLASH_TYPES and query.shape[3] <= FLASH_HEAD_SIZE:
        return _at_once(segments.kernel, query, key, value, segments, scaling, sliding_window), None
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    return _one_by_one((query, key, value), segments, sliding_window, options), None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    tensors: tuple[torch.Tensor, ...], segments: Segments, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attention of one row after the other. A compiled layer calls it as it is: its graph would depend on the lengths."""
    queries, keys, values = (torch.split(tensor, list(segments.lengths), dim=2) for tensor in tensors)
    rows = [_attend_row(*row, window, options) for row in zip(queries, keys, values, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2)


def _attend_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attention of one row, by torch's own implementation."""
    size, band = query.shape[2], None
    if window is not None and size > window:
        band = torch.ones(size, size, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=band, is_causal=band is None, **options)


@functools.cache
def flash_kernel(device: torch.device) -> Kernel | None:
    """The kernel for all rows at once; None: this torch or this device is not made for it."""
    return find_kernel(torch.cuda.get_device_capability(device)) if device.type == "cuda" else None


def find_kernel(capability: tuple[int, int]) -> Kernel | None:
    """The kernel of this torch for a GPU with this compute capability."""
    if capability < FLASH_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    options = inspect.signature(varlen_attn).parameters
    return Kernel(varlen_attn, "enable_gqa" in options) if "window_size" in options else None


def _at_once(
    kernel: Kernel,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of all rows in one kernel of flash attention."""
    seen = -1 if window is None else window - 1
    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if kernel.shares_keys:
            options["enable_gqa"] = True
        else:
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    where = (segments.starts, segments.starts, segments.longest, segments.longest)
    attended: torch.Tensor = kernel.call(query, key, value, *where, scale=scaling, window_size=(seen, 0), **options)
    return attended[None]


AttentionInterface.register(NAME, attend)
