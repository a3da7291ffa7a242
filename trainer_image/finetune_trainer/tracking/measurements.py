"""What a run measures: an optimizer step, the running loss of the log, and an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepDone:
    """Measurements of an optimizer step."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Passes over the rows done."""
    loss: float
    """Mean loss per supervised token since the last logging step."""
    grad_norm: float
    """Norm of the gradients of this step, before clipping."""
    learning_rate: float
    """Of this step."""
    tokens: int
    """Non-padding tokens of this step, of all ranks."""
    memory: int
    """Most memory that rank 0 has held so far, in bytes: of its GPU, else of its process."""


@dataclass
class RunningLoss:
    """The running loss that the loop logs."""

    loss: float = 0.0
    """Summed over the supervised tokens since the last logging step."""
    tokens: int = 0
    """Supervised tokens since then."""
    mean: float | None = None
    """Mean loss per token since then, as of the last step."""
    first: float | None = None
    """Mean loss per token of the first step."""

    def add(self, loss: float, tokens: int) -> float:
        """Add a step; return the mean loss since the last logging step."""
        self.loss, self.tokens = self.loss + loss, self.tokens + tokens
        self.mean = self.loss / max(self.tokens, 1)
        self.first = self.mean if self.first is None else self.first
        return self.mean

    def clear(self) -> None:
        """Start again after a logging step."""
        self.loss, self.tokens = 0.0, 0


LARGEST_EXPONENT = math.log(1e300)
"""The largest loss that has a perplexity: above it, the exponential is too large for a float."""


@dataclass(frozen=True)
class Evaluation:
    """The loss of the model over the evaluation rows."""

    loss: float
    """Mean per supervised token; finite."""

    @property
    def perplexity(self) -> float | None:
        """The exponential of the loss; None when it is too large for a float."""
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else None
