"""Weights in float32 for the optimizer, while the model computes with their values rounded to bfloat16.

An update is often smaller than a step of bfloat16, so it must not be made there. Without autocast nothing is converted in a
step but the gradients and, after the update, the weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


class Masters:
    """The weights that the optimizer updates, in float32, beside those that a model computes with."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Take over the weights of a model that is on its device in float32; the model keeps rounded ones."""
        self._rounded: list[torch.Tensor] = [weight for weight in model.parameters() if weight.requires_grad]
        self._masters: list[torch.Tensor] = [nn.Parameter(weight.data) for weight in self._rounded]
        for weight in model.parameters():
            weight.data = weight.data.to(dtype)

    def named(self, learning: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
        """The masters of the model's own weights, under the same names."""
        masters: dict[int, Any] = dict(zip(map(id, self._rounded), self._masters, strict=True))
        return {name: masters[id(weight)] for name, weight in learning.items()}

    def take_gradients(self) -> None:
        """Add the gradients of the model's weights to those of the masters, and forget the former.

        Besides both, nothing of their size is held.
        """
        added: list[tuple[Any, Any]] = []
        copied: list[tuple[Any, Any]] = []
        for master, weight in zip(self._masters, self._rounded, strict=True):
            if weight.grad is None:
                continue
            (copied if master.grad is None else added).append((master, weight.grad))
            weight.grad = None
        for master, _ in copied:
            master.grad = torch.empty_like(master, requires_grad=False)
        for pairs, operation in ((added, torch._foreach_add_), (copied, torch._foreach_copy_)):
            if pairs:
                operation([master.grad for master, _ in pairs], [gradient for _, gradient in pairs])

    @torch.no_grad()
    def publish(self) -> None:
        """Give the model the values of the masters, rounded."""
        torch._foreach_copy_(self._rounded, self._masters)
