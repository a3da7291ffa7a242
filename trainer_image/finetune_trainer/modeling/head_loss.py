"""The loss of hidden states through the output layer, in chunks: the logits of all of them would not fit into memory.

The gradient is made in the forward pass, chunk by chunk, so that no logits are kept or computed a second time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable

    Slope = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

CHUNK_BYTES = 512 * 2**20
"""Memory that a chunk takes, unless the device has more to offer."""

LOGIT_BYTES = 8
"""Memory of a logit: it is held twice in float32, or in float32 and twice in half of it."""

MIN_ROWS = 512
"""Rows of a chunk at least: with fewer, reading the output layer takes longer than computing with it."""

ALIGNED = 8
"""Numbers of two bytes in a line of 16: a GPU multiplies matrices several times as slowly whose rows do not begin at one, as
those of GPT-2's 50,257 logits."""


def chunk_rows(vocabulary: int, chunk_bytes: int) -> int:
    """Hidden states in a chunk."""
    return max(MIN_ROWS, chunk_bytes // (LOGIT_BYTES * vocabulary))


def head_loss(
    head: Any, hidden: torch.Tensor, targets: torch.Tensor, chunk_bytes: int = CHUNK_BYTES, slope: Slope | None = None
) -> torch.Tensor:
    """Cross entropy of [N, H] hidden states, summed: a scalar, float32.

    Args:
        head: the output layer, a linear one.
        hidden: the hidden states.
        targets: [N], int64.
        chunk_bytes: memory for a chunk.
        slope: computes loss and gradient of logits; None: `plain_slope`.
    """
    rows = chunk_rows(head.weight.shape[0], chunk_bytes)
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    if torch.is_grad_enabled() and dtype != torch.float16:
        apply: Callable[..., torch.Tensor] = _HeadLoss.apply
        return apply(hidden.to(dtype), head.weight, head.bias, targets, rows, slope or plain_slope)
    # The gradients of float16 need the scale of the loss, which is known in the backward pass only.
    chunks = zip(torch.split(hidden, rows), torch.split(targets, rows), strict=True)
    return torch.stack([checkpoint(_chunk_loss, head, *chunk, use_reentrant=False) for chunk in chunks]).sum()


def _chunk_loss(head: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return cross_entropy(head(hidden), targets)


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy of [N, V] logits and [N] targets, a scalar; zero, but with a gradient, when N is 0."""
    return functional.cross_entropy(logits.float(), targets, reduction="sum")


class _HeadLoss(torch.autograd.Function):
    """The sum of the cross entropy, whose gradient is ready after the forward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        rows: int,
        slope: Slope,
    ) -> torch.Tensor:
        own, count = torch.empty_like(hidden), len(weight)
        layer, shift = _aligned(weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        _, learns, shifts, *_ = ctx.needs_input_grad
        loss = torch.zeros((), dtype=torch.float32, device=hidden.device)
        of_weight = torch.zeros_like(weight) if learns and not len(hidden) else None
        of_bias = torch.zeros_like(weight[:, 0], dtype=torch.float32) if shifts else None
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = hidden[start : start + rows]
                added, rise = slope(functional.linear(part, layer, shift), targets[start : start + rows])
                loss += added
                torch.mm(rise, layer, out=own[start : start + rows])
                if learns:
                    product = (rise.t() @ part)[:count]
                    of_weight = product if of_weight is None else of_weight.float().add_(product)
                if of_bias is not None:
                    of_bias += rise.sum(0, dtype=torch.float32)[:count]
        ctx.made = own, of_weight, of_bias
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        own, of_weight, of_bias = (None if made is None else made.mul_(scale) for made in ctx.made)
        del ctx.made  # each of them is used up
        return own, of_weight, of_bias, None, None, None


def _aligned(layer: torch.Tensor, shift: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """The output layer with as many tokens as a GPU likes; none of those that are added is ever likely."""
    more = -len(layer) % ALIGNED
    if not more or layer.element_size() != 2:
        return layer, shift
    shift = layer.new_zeros(len(layer)) if shift is None else shift
    return functional.pad(layer, (0, 0, 0, more)), functional.pad(shift, (0, more), value=-torch.inf)


def plain_slope(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of a chunk of logits, and its gradient at each logit, of their type."""
    surprise = functional.log_softmax(logits.float(), dim=-1)
    loss = -surprise.gather(1, targets[:, None]).sum()
    slope = surprise.exp_()
    slope.scatter_add_(1, targets[:, None], -torch.ones_like(slope[:, :1]))
    return loss, slope.to(logits.dtype)


def fused_slope(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The same, in a form that torch compiles into two kernels that keep no logits in float32."""
    wide = logits.float()
    total = wide.logsumexp(dim=-1)
    loss = (total - wide.gather(1, targets[:, None])[:, 0]).sum()
    hits = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    return loss, ((wide - total[:, None]).exp() - hits.float()).to(logits.dtype)
