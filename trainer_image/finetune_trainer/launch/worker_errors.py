"""Which of several errors of workers is the cause, and whether it ends the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import Interrupted, TrainerError, TrainingFailed, WorkerLost, in_words
from finetune_trainer.explain import explain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.config.run import Run

LAST_NAMED = (WorkerLost, TrainingFailed, Interrupted)
"""Kinds of errors that are less telling than all others, in this order. A rank that was killed reports nothing, the others
report only that they lost it, and they may do so in words that are not known for that."""


def find_cause(failures: Mapping[int, BaseException], run: Run) -> TrainerError | None:
    """The most telling error of the workers, by rank: of several of a kind the earliest; None: there is no error."""
    known = [explain(error, run) or in_words(error, f"rank {rank}: ") for rank, error in sorted(failures.items())]
    return min(known, key=_order, default=None)


def _order(error: TrainerError) -> tuple[int, float]:
    place = LAST_NAMED.index(type(error)) if type(error) in LAST_NAMED else -1
    return place, getattr(error, "time", 0.0)


def worker_error(error: Any, run: Run) -> TrainerError:
    """Find the worker's own error in the error of Ray Train."""
    final = explain(getattr(error, "controller_failure", error), run)
    return final or find_cause(getattr(error, "worker_failures", None) or {}, run) or in_words(error)
