"""The loss over the evaluation rows. It has no effect on the training that continues after it."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import numpy as np
import torch

from finetune_trainer.data import step_plan
from finetune_trainer.runtime import devices, distributed, parallel
from finetune_trainer.runtime.engine import make_batch
from finetune_trainer.tracking.measurements import Evaluation

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)


def evaluate(engine: Engine, heartbeat: Callable[[], None]) -> Evaluation | None:
    """Evaluate the model; None: there are no evaluation rows, or the loss is not finite. A collective.

    Args:
        engine: the model and the rows.
        heartbeat: called after each batch.
    """
    data, worker = engine.data, engine.worker
    if not len(data.eval_rows):
        return None
    size = engine.run.config.training.batch_size * worker.size
    lengths = data.eval.lengths
    rows = data.eval_rows[np.argsort(-lengths[data.eval_rows], kind="stable")]
    losses, tokens = [], int(data.eval.supervised[rows].sum())
    with parallel.evaluation_mode(engine.loss):
        for start in range(0, len(rows), size):
            share = step_plan.split_across_ranks(rows[start : start + size], lengths, worker.size)[worker.rank]
            with engine.autocast():
                losses.append(engine.loss(make_batch(engine, data.eval, share)))
            heartbeat()
    # They are read at the end: the device never waits for the host.
    summed = math.fsum(torch.stack(losses).tolist())
    mean = distributed.sum_over_ranks(summed)[0] / max(tokens, 1)
    devices.empty_cache(worker.device)
    if math.isfinite(mean):
        return Evaluation(mean)
    if worker.is_rank0:
        log.warning("the loss over the evaluation rows is %s: it is left out", mean)
    return None
