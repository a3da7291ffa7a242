"""Causal attention over packed rows: one line holds several rows without padding, and no row attends to another.

It is registered with transformers, whose models use it like their own implementations. Without `Segments` it is the same
as `sdpa` without a mask, so that a model can generate, one prompt at a time.
"""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "finetune_segments"
"""Its name for `set_attn_implementation`."""

FLASH_TYPES = (torch.float16, torch.bfloat16)
"""Types that the kernel for all rows at once supports."""

FLASH_CAPABILITY = (8, 0)
"""CUDA's compute capability that the kernel needs, Ampere's: https://github.com/Dao-AILab/flash-attention."""

FLASH_HEAD_SIZE = 256
"""Size of the largest head that the kernel supports."""


@dataclass(frozen=True)
class Segments:
    """The positions of the rows in a line."""

    lengths: tuple[int, ...]
    """Tokens of each row."""
    starts: torch.Tensor
    """[rows + 1], int32, on the model's device: where each row starts, and where the last one ends."""

    @classmethod
    def of(cls, lengths: tuple[int, ...], device: torch.device) -> Segments:
        """Rows of these lengths."""
        return cls(lengths, torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device))


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
    flash = query.is_cuda and query.dtype in FLASH_TYPES and not dropout
    if flash and (kernel := _kernel(_capability(query.device), query.shape[3])):
        return _at_once(kernel, query, key, value, segments, scaling, sliding_window), None
    options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
    queries, keys, values = (torch.split(tensor, list(segments.lengths), dim=2) for tensor in (query, key, value))
    rows = [_attend_row(*row, sliding_window, options) for row in zip(queries, keys, values, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2), None


def _attend_row(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, window: int | None, options: dict[str, Any]
) -> torch.Tensor:
    """Attention of one row, by torch's own implementation."""
    size, band = query.shape[2], None
    if window is not None and size > window:
        band = torch.ones(size, size, dtype=torch.bool, device=query.device).tril().triu(1 - window)
    return functional.scaled_dot_product_attention(query, key, value, attn_mask=band, is_causal=band is None, **options)


@functools.cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


@functools.cache
def _kernel(capability: tuple[int, int], head_size: int) -> Any | None:
    """The flash attention of torch for rows of different lengths; None: this torch or this GPU is too old for it."""
    if capability < FLASH_CAPABILITY or head_size > FLASH_HEAD_SIZE:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if "window_size" in inspect.signature(varlen_attn).parameters else None


def _at_once(
    kernel: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    segments: Segments,
    scaling: float | None,
    window: int | None,
) -> torch.Tensor:
    """Attention of all rows in one kernel of flash attention."""
    longest, seen = max(segments.lengths), -1 if window is None else window - 1
    options: dict[str, Any] = {}
    if (groups := query.shape[1] // key.shape[1]) > 1:
        if "enable_gqa" in inspect.signature(kernel).parameters:
            options["enable_gqa"] = True
        else:  # torch before 2.12
            key, value = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    query, key, value = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
    where = (segments.starts, segments.starts, longest, longest)
    attended: torch.Tensor = kernel(query, key, value, *where, scale=scaling, window_size=(seen, 0), **options)
    return attended[None]


AttentionInterface.register(NAME, attend)
