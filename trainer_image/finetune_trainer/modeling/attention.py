"""Causal attention over packed rows: one line holds several rows without padding, and no row attends to another.

It is registered with transformers, whose models use it like their own implementations. Without `Segments` it is the same
as `sdpa` without a mask, so that a model can generate, one prompt at a time. For families whose attention cannot be replaced
so, see `packed_families`.
"""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.nn import functional
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from finetune_trainer.memory import HEAD_MULTIPLE

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

NAME = "finetune_segments"
"""Its name for `set_attn_implementation`."""

FLASH_TYPES = (torch.float16, torch.bfloat16)
"""Types that the kernel of torch supports."""

FLASH_CAPABILITY = (8, 0)
"""CUDA's compute capability that the kernel needs, Ampere's: https://github.com/Dao-AILab/flash-attention."""

HEAD_SIZE, SMALLER_HEAD_SIZE = 256, 192
"""Size of the largest head that the kernel supports, on GPUs of data centres, and on others with less memory in a core."""

FLASH_ARGUMENTS = {"cum_seq_q", "max_q", "dropout_p", "is_causal", "scale", "window_size_left", "window_size_right"}
"""What torch's operator has to take by these names."""


class Kernel(NamedTuple):
    """Attention of rows of different lengths, all at once."""

    call: Callable[..., torch.Tensor]
    """Called as `flash`."""
    head_size: int = HEAD_SIZE
    """Size of the largest head."""
    types: tuple[torch.dtype, ...] = FLASH_TYPES
    """Types that it takes."""


class Alibi(NamedTuple):
    """A bias of the scores, linear in the distance, as more numbers of each head: kernels that know no bias compute it."""

    queries: torch.Tensor
    """[H, E]."""
    keys: torch.Tensor
    """[T, E]: the product of both is the bias before scaling, up to a term for each query, which does not matter."""


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
    alibi: Alibi | None = None
    """Of a model whose tokens have no positions; None: of one whose tokens have."""

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
    size = query.shape[3]
    scaling = size**-0.5 if scaling is None else scaling
    if segments.alibi is not None:
        query, key, value = _with_alibi(query, key, value, segments.alibi)
    lacks = _lacks(segments.kernel, query)
    if segments.kernel is not None and lacks is None:
        attended = _at_once(segments.kernel, (query, key, value), segments, sliding_window, scaling, dropout)
    else:
        options = {"scale": scaling, "dropout_p": dropout, "enable_gqa": query.shape[1] != key.shape[1]}
        attended = _one_by_one((query, key, value), segments, sliding_window, options, lacks)
    return attended[..., :size], None


def _with_alibi(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, alibi: Alibi) -> tuple[torch.Tensor, ...]:
    """Longer heads, whose products have the bias; those of the values are longer by zeros, since all must be of one size."""
    more = alibi.keys.shape[1]
    queries = alibi.queries.to(query.dtype)[None, :, None].expand(*query.shape[:3], more)
    keys = alibi.keys.to(key.dtype)[None, None].expand(*key.shape[:3], more)
    return torch.cat([query, queries], 3), torch.cat([key, keys], 3), functional.pad(value, (0, more))


def _lacks(kernel: Kernel | None, query: torch.Tensor) -> str | None:
    """Why the rows cannot be computed at once; None: they can."""
    if kernel is None:
        return f"torch {torch.__version__} has no kernel for several rows on this device"
    if query.dtype not in kernel.types:
        return f"the kernel for several rows takes no {query.dtype}"
    if query.shape[3] > kernel.head_size:
        return f"the kernel for several rows takes heads of up to {kernel.head_size} on this device, not {query.shape[3]}"
    return None


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _one_by_one(
    tensors: tuple[torch.Tensor, ...], segments: Segments, window: int | None, options: dict[str, Any], why: str | None
) -> torch.Tensor:
    """Attention of one row after the other. A compiled layer calls it as it is: its graph would depend on the lengths."""
    if tensors[0].device.type != "cpu":
        _tell(why)
    queries, keys, values = (torch.split(tensor, list(segments.lengths), dim=2) for tensor in tensors)
    rows = [_attend_row(*row, window, options) for row in zip(queries, keys, values, strict=True)]
    return torch.cat(rows, dim=2).transpose(1, 2)


@functools.cache
def _tell(why: str | None) -> None:
    """Say once why a GPU does not what it could."""
    log.warning("attention is computed row by row, which is slow on a GPU: %s", why)


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
    operator = getattr(torch.ops.aten, "_flash_attention_forward", None)
    if capability < FLASH_CAPABILITY or operator is None:
        return None
    if not {argument.name for argument in operator.default._schema.arguments} >= FLASH_ARGUMENTS:  # noqa: SLF001 - there is no other
        return None
    # The cores of the GPUs of data centres have more memory than those of the others.
    large = capability in ((8, 0), (9, 0)) or capability[0] == 10
    return Kernel(flash, HEAD_SIZE if large else SMALLER_HEAD_SIZE)


def flash(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    starts: torch.Tensor,
    longest: int,
    window: int | None,
    scaling: float,
    dropout: float,
) -> torch.Tensor:
    """Flash attention of torch, [T, H, D], over rows that start at [rows + 1] places; heads of queries may share one of keys.

    `torch.nn.attention.varlen.varlen_attn` is a cover of this operator that has no dropout, that shares no keys before
    torch 2.12, and that costs the host more time than all else of a compiled layer.
    """
    seen = -1 if window is None else window - 1
    options = {"scale": scaling, "window_size_left": seen, "window_size_right": 0}
    where = (starts, starts, longest, longest)
    made: tuple[torch.Tensor, ...] = torch.ops.aten._flash_attention_forward(  # noqa: SLF001 - as torch.nested calls it
        query, key, value, *where, dropout, window is None, False, **options
    )
    return made[0]


def _at_once(
    kernel: Kernel, tensors: tuple[torch.Tensor, ...], segments: Segments, window: int | None, scaling: float, dropout: float
) -> torch.Tensor:
    """Attention of all rows in one kernel."""
    more = -tensors[0].shape[3] % HEAD_MULTIPLE
    if more:
        tensors = tuple(functional.pad(tensor, (0, more)) for tensor in tensors)
    query, key, value = (tensor[0].transpose(0, 1) for tensor in tensors)
    return kernel.call(query, key, value, segments.starts, segments.longest, window, scaling, dropout)[None]


AttentionInterface.register(NAME, attend)
