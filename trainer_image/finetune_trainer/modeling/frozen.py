"""Frozen linear layers in 8 bits: General.frozen_dtype.

Weights are kept as float8 (e4m3) with a scale for each output, what comes in is rounded likewise with a scale for each token, and
the tensor cores multiply both: nearly twice as fast as in bfloat16. So is the gradient of what came in; frozen weights have none.

torchao has no such layer: its quantized weights are for inference, without gradients, and its layers for training keep
the weights in bfloat16 and round them anew in each pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from finetune_trainer.errors import ConfigError
from finetune_trainer.modeling import families

if TYPE_CHECKING:
    from collections.abc import Callable

    Product = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.dtype], torch.Tensor]

FLOAT8 = torch.float8_e4m3fn

LARGEST = torch.finfo(FLOAT8).max

SMALLEST = 1e-30
"""Rows with nothing larger are zero: gradients of a token are small numbers."""

CAPABILITY = (8, 9)
"""CUDA's compute capability whose tensor cores multiply such numbers, Ada's; Hopper and all later ones do, too."""

MULTIPLE = 16
"""Inputs and outputs of a layer are a multiple of so many, or the operator does not take them."""


def scaled_product(
    left: torch.Tensor, right: torch.Tensor, left_scale: torch.Tensor, right_scale: torch.Tensor, dtype: torch.dtype
) -> torch.Tensor:
    """Products [M, N] of the rows of [M, K] and [N, K], both float8 with scales [M, 1] and [N, 1]."""
    made: torch.Tensor = torch._scaled_mm(  # noqa: SLF001 - there is no public name in all releases that are supported
        left, right.t(), scale_a=left_scale, scale_b=right_scale.t(), out_dtype=dtype, use_fast_accum=True
    )
    return made


def scales_of(rows: torch.Tensor) -> torch.Tensor:
    """A scale for each row, float32, with which its largest number is the largest of float8."""
    return rows.abs().amax(dim=-1, keepdim=True).float().clamp(min=SMALLEST) / LARGEST


def round_to(rows: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """Rows as float8: what is not finite makes a row NaN."""
    return (rows / scales).to(FLOAT8)


def transpose(rows: torch.Tensor) -> torch.Tensor:
    """The transpose, in memory of its own: tensor cores read both operands of float8 along what they sum over."""
    return rows.view(torch.uint8).t().contiguous().view(FLOAT8)


class _FrozenProduct(torch.autograd.Function):
    """Products of rows with a weight that takes no gradient. The rows are given twice: rounded, and as what takes the gradient.

    They are rounded outside, since torch compiles no second function with this in one layer; and rows that go to several
    layers are rounded once.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: torch.Tensor,
        scales: torch.Tensor,
        weight: torch.Tensor,
        scale: torch.Tensor,
        transposed: torch.Tensor,
        ones: torch.Tensor,
        product: Product,
    ) -> torch.Tensor:
        ctx.save_for_backward(scale, transposed, ones)
        ctx.product, ctx.dtype = product, rows.dtype
        return product(round_to(rows, scales), weight, scales, scale, rows.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        # The scales of the weight are along what is summed over: they are multiplied into the gradient before that is rounded.
        scale, transposed, ones = ctx.saved_tensors
        gradient = gradient * scale[:, 0]
        scales = scales_of(gradient)
        made = ctx.product(round_to(gradient, scales), transposed, scales, ones, ctx.dtype)
        return made, None, None, None, None, None, None


class FrozenLinear(nn.Module):
    """A frozen linear layer, held in 8 bits, twice: as it is, and transposed for the gradient of its input."""

    def __init__(self, linear: nn.Linear, device: torch.device, product: Product) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.dtype, self.product, self.bias = linear.weight.dtype, product, linear.bias
        weight = linear.weight.detach().to(device)
        scale = scales_of(weight)
        rounded = round_to(weight, scale)
        ones = torch.ones(linear.in_features, 1, device=device)
        parts = {"rounded": rounded, "scale": scale, "transposed": transpose(rounded), "ones": ones}
        for name, part in parts.items():
            self.register_buffer(name, part, persistent=False)

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it counts, in its former type: PEFT asks for type and device."""
        rounded, scale = self.get_buffer("rounded"), self.get_buffer("scale")
        return (rounded.float() * scale).to(self.dtype)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """As of the layer that it takes the place of."""
        rows = inputs.reshape(-1, self.in_features).to(self.dtype)
        apply: Callable[..., torch.Tensor] = _FrozenProduct.apply
        made = apply(rows, scales_of(rows.detach()), self.rounded, self.scale, self.transposed, self.ones, self.product)
        made = made.view(*inputs.shape[:-1], self.out_features)
        return made if self.bias is None else made + self.bias


def hold_in_8_bits(model: Any, device: torch.device, product: Product = scaled_product) -> int:
    """Hold the frozen linear layers of the decoder in 8 bits, on the device; return how many these are.

    One after the other is moved there: the device never has the memory for all of them in their former type.

    Raises:
        ConfigError: there are none.
    """
    found = 0
    for layer in families.decoder_layers(model):
        for part in list(layer.modules()):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear) and _can_be_held(child):
                    setattr(part, name, FrozenLinear(child, device, product))
                    found += 1
    if not found:
        kind = families.unwrapped(model).config.model_type
        why = f"a model of type {kind} has no linear layers that fp8 can hold, with sizes that are multiples of {MULTIPLE}"
        raise ConfigError([f"General.frozen_dtype: {why}; leave frozen_dtype out"])
    return found


def _can_be_held(part: nn.Linear) -> bool:
    if type(part) is not nn.Linear or part.weight.requires_grad:
        return False
    return part.in_features % MULTIPLE == 0 and part.out_features % MULTIPLE == 0


def is_held_in_8_bits(model: nn.Module) -> bool:
    """Whether some layers are."""
    return any(isinstance(part, FrozenLinear) for part in model.modules())
