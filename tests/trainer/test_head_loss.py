"""The loss through the output layer, in chunks and with the gradient of the forward pass, is that of plain autograd."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from finetune_trainer.modeling.head_loss import MIN_ROWS, chunk_rows, fused_slope, head_loss, plain_slope

SIZE, VOCABULARY = 16, 50
SCALE = 0.25
"""What the loss is multiplied by after it was computed."""


def plain_loss(head: nn.Linear, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(head(hidden).float(), targets, reduction="sum")


def gradients(loss: torch.Tensor, hidden: torch.Tensor, head: nn.Linear) -> list[torch.Tensor]:
    """Of the hidden states and of the layer's own weights, if it learns."""
    hidden.grad = None
    head.zero_grad()
    (SCALE * loss).backward()
    return [tensor.grad.clone() for tensor in (hidden, *head.parameters()) if tensor.grad is not None]


@pytest.mark.parametrize("rows", [0, 1, 7, MIN_ROWS, 2 * MIN_ROWS + 3])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("slope", [plain_slope, fused_slope])
def test_loss_and_gradient_are_those_of_autograd(rows: int, *, bias: bool, learns: bool, slope: Any) -> None:
    torch.manual_seed(0)
    head = nn.Linear(SIZE, VOCABULARY, bias=bias).requires_grad_(learns)
    hidden, targets = torch.randn(rows, SIZE, requires_grad=True), torch.randint(VOCABULARY, (rows,))
    loss, expected = head_loss(head, hidden, targets, 1, slope), plain_loss(head, hidden, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    ours, theirs = gradients(loss, hidden, head), gradients(expected, hidden, head)
    assert len(ours) == 1 + learns * (1 + bias)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_lower_precision_gives_what_autocast_gives(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    head = nn.Linear(SIZE, VOCABULARY)
    hidden, targets = torch.randn(2 * MIN_ROWS, SIZE, requires_grad=True), torch.randint(VOCABULARY, (2 * MIN_ROWS,))
    with torch.autocast("cpu", dtype=dtype):
        loss, expected = head_loss(head, hidden, targets, chunk_bytes=1), plain_loss(head, hidden, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=0)
    ours, theirs = gradients(loss, hidden, head), gradients(expected, hidden, head)
    for our, their in zip(ours, theirs, strict=True):
        assert our.dtype == torch.float32
        assert float((our - their).norm() / their.norm()) < 1e-2


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("slope", [plain_slope, fused_slope])
def test_logits_of_a_vocabulary_of_any_size_are_aligned_in_memory(*, bias: bool, slope: Any) -> None:
    """And the tokens that are added for it have no part in loss and gradients."""
    torch.manual_seed(0)
    head = nn.Linear(SIZE, VOCABULARY, bias=bias, dtype=torch.bfloat16)
    hidden, targets = torch.randn(9, SIZE, dtype=torch.bfloat16, requires_grad=True), torch.randint(VOCABULARY, (9,))
    strides = []

    def watched(logits: torch.Tensor, targets: torch.Tensor) -> Any:
        loss, rise = slope(logits, targets)
        strides.extend([logits.stride(), rise.stride()])
        return loss, rise

    loss, expected = head_loss(head, hidden, targets, 1, watched), plain_loss(head, hidden, targets)
    assert VOCABULARY % 8
    assert strides == [(56, 1), (56, 1)]
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    for our, their in zip(gradients(loss, hidden, head), gradients(expected, hidden, head), strict=True):
        assert our.shape == their.shape
        assert float((our - their).norm() / their.norm()) < 1e-2


def test_without_gradients_none_is_made() -> None:
    head, hidden = nn.Linear(SIZE, VOCABULARY), torch.randn(5, SIZE)
    targets = torch.randint(VOCABULARY, (5,))
    with torch.no_grad():
        loss = head_loss(head, hidden, targets)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain_loss(head, hidden, targets).detach())


def test_gradient_is_given_once() -> None:
    head, hidden = nn.Linear(SIZE, VOCABULARY), torch.randn(5, SIZE, requires_grad=True)
    loss = head_loss(head, hidden, torch.randint(VOCABULARY, (5,)))
    loss.backward(retain_graph=True)
    with pytest.raises(AttributeError):
        loss.backward()


def test_chunk_is_as_large_as_its_memory_allows_but_never_small() -> None:
    assert chunk_rows(128_256, 2**30) == 1046
    assert chunk_rows(256_000, 2**28) == MIN_ROWS
