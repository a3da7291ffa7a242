"""Compile the decoder layers of a model, each by itself: what is the same in all of them is compiled once."""

from __future__ import annotations

import logging
import warnings
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from torch import nn

Made = TypeVar("Made")

log = logging.getLogger(__name__)

KINDS = 64
"""Variants of a layer that are kept: a model may have layers with and without a window, and batches of one row."""


class Compiler:
    """Runs functions as torch has compiled them. Where it cannot, they run as they are, and `failure` says why."""

    def __init__(self, backend: str = "inductor") -> None:
        self.failure: str | None = None
        self.proved = False
        """Whether all that there is has been compiled: from now on, an error is an error."""
        self._backend = backend
        self._compiled: dict[Callable[..., Any], Callable[..., Any]] = {}
        configure()

    def give_up(self, why: str) -> None:
        """Run everything as it is from now on."""
        if self.failure is None:
            self.failure = why
            log.warning("the layers of the model are not compiled, training is slower: %s", why)

    def compile_layers(self, layers: Iterable[nn.Module]) -> None:
        """Compile layers where gradients are made. They run as they are elsewhere: answers and evaluations have other shapes."""
        for layer in layers:
            # FSDP makes another class of the layer, and its hooks stay outside.
            layer.forward = partial(self._forward, layer)

    def compile_function(self, function: Callable[..., Made], plain: Callable[..., Made]) -> Callable[..., Made]:
        """The compiled function, with what takes its place where torch cannot compile it."""
        return partial(self._call, function, plain)

    def _forward(self, layer: nn.Module, *inputs: Any, **named: Any) -> Any:
        forward: Any = type(layer).forward
        if not torch.is_grad_enabled():
            return forward(layer, *inputs, **named)
        return self._call(forward, forward, layer, *map(_with_gradient, inputs[:1]), *inputs[1:], **named)

    def _call(self, function: Callable[..., Made], plain: Callable[..., Made], *inputs: Any, **named: Any) -> Made:
        if self.failure is not None:
            return plain(*inputs, **named)
        made: Made
        try:
            with nullcontext() if self.proved else _without_warnings():
                made = self._compile(function)(*inputs, **named)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever a compiler, or a model's own code in its hands, stumbles over
            if self.proved:
                raise
            self.give_up(in_a_line(error))
            return plain(*inputs, **named)
        return made

    def _compile(self, function: Callable[..., Any]) -> Callable[..., Any]:
        if function not in self._compiled:
            # The lengths of all batches differ.
            self._compiled[function] = torch.compile(function, backend=self._backend, dynamic=True)
        return self._compiled[function]


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Silence what torch warns itself about while it compiles."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _with_gradient(value: Any) -> Any:
    """A tensor of floats that takes a gradient, as those after the first layer do: that one is compiled with the others."""
    if isinstance(value, torch.Tensor) and value.is_floating_point() and not value.requires_grad:
        return value.detach().requires_grad_()
    return value


def configure() -> None:
    """Set what torch has no argument for."""
    from torch._dynamo import config as tracing
    from torch._functorch import config as gradients
    from torch.fx.experimental import _config as shapes

    tracing.recompile_limit = KINDS
    # DDP averages gradients layer by layer as it is; graphs need not be cut for that.
    tracing.optimize_ddp = False
    # A number of rows that happens to be another size, too, is not that size in the next batch.
    shapes.use_duck_shape = False
    if hasattr(gradients, "force_non_lazy_backward_lowering"):
        # Otherwise the first backward pass compiles, where a failure leaves the other ranks waiting.
        gradients.force_non_lazy_backward_lowering = True


def in_a_line(error: Exception) -> str:
    """What an error of the compiler says, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    count = 2 if lines and lines[0].endswith(":") else 1
    return f"{type(error).__name__}: {' '.join(lines[:count]) or 'no message'}"
