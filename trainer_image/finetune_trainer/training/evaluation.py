"""The loss over the rows that are held out. It changes nothing about the training that goes on after it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np

from finetune_trainer.data import batching
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.runtime.engine import make_batch
from finetune_trainer.tracking.measurements import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)


def evaluate(engine: Engine, alive: Callable[[], None]) -> Evaluation | None:
    """Evaluate the model as it is; None: there are no rows for it, or the loss is not finite. A collective.

    Args:
        engine: the model and the rows.
        alive: is called after each batch.
    """
    data, worker = engine.data, engine.worker
    if not len(data.held_rows):
        return None
    size = engine.run.config.training.batch_size * worker.size
    lengths = data.held.lengths
    rows = data.held_rows[np.argsort(-lengths[data.held_rows], kind="stable")]
    summed, tokens = 0.0, int(data.held.supervised[rows].sum())
    with distributed.without_learning(engine.loss):
        for start in range(0, len(rows), size):
            share = batching.deal(rows[start : start + size], lengths, worker.size)[worker.rank]
            with engine.autocast():
                summed += float(engine.loss(make_batch(engine, data.held, share)))
            alive()
    mean = distributed.sum_over_ranks(summed)[0] / max(tokens, 1)
    devices.empty_cache(worker.device)
    if math.isfinite(mean):
        return Evaluation(mean)
    if worker.is_first:
        log.warning("the loss over the evaluation rows is %s: it is left out", mean)
    return None
