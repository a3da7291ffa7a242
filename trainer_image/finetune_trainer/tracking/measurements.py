"""What a run measures: an optimizer step, the running loss of the log, and an evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class StepDone:
    """How an optimizer step went."""

    step: int
    """Steps done, this one included."""
    epoch: float
    """Passes over the rows done."""
    loss: float
    """Mean loss per supervised token since the last logging step."""
    learning_rate: float
    """Of this step."""
    tokens: int
    """Non-padding tokens of this step, of all ranks."""
    memory: int
    """Most memory that rank 0 has held so far, in bytes: of its GPU, else of its process."""


@dataclass
class RunningLoss:
    """What the loop carries from step to step for its log."""

    loss: float = 0.0
    """Summed over the supervised tokens since the last logging step."""
    tokens: int = 0
    """Supervised tokens since then."""
    mean: float | None = None
    """Mean loss per token since then, as of the last step."""
    first: float | None = None
    """Mean loss per token of the first step."""

    def add(self, loss: float, tokens: int) -> float:
        """A step is done; give the mean loss since the last logging step."""
        self.loss, self.tokens = self.loss + loss, self.tokens + tokens
        self.mean = self.loss / max(self.tokens, 1)
        self.first = self.mean if self.first is None else self.first
        return self.mean

    def clear(self) -> None:
        """A logging step is done."""
        self.loss, self.tokens = 0.0, 0


LARGEST_EXPONENT = math.log(1e300)
"""Of a loss above it there is no perplexity: e to its power is no number any more."""


@dataclass(frozen=True)
class Evaluation:
    """How good the model is at rows that it does not learn from."""

    loss: float
    """Mean per supervised token; finite."""

    @property
    def perplexity(self) -> float | None:
        """The exponential of the loss; None when that is too large for a number."""
        return math.exp(self.loss) if self.loss < LARGEST_EXPONENT else None
