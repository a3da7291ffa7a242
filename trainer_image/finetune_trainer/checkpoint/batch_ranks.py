"""A run that goes on with another number of ranks keeps its batches: the rows of each step are those that it would have had."""

from __future__ import annotations

import logging
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import store
from finetune_trainer.checkpoint.identity import configuration_digest
from finetune_trainer.checkpoint.marker import Unusable, read_marker
from finetune_trainer.config.run import CHECKPOINTS
from finetune_trainer.errors import output_error
from finetune_trainer.runtime import distributed
from finetune_trainer.transient import is_transient

if TYPE_CHECKING:
    from collections.abc import Iterator

    from finetune_trainer.checkpoint.marker import Marker
    from finetune_trainer.config.run import Run
    from finetune_trainer.data.splits import Data
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)


def keep_batches(run: Run, worker: Worker, data: Data) -> Run:
    """The run with the number of ranks that its batches are made for: that of the run whose checkpoint it will resume from,
    provided that configuration and rows are the same. A collective.

    It is asked before the engine is built, which depends on it: the learning-rate schedule, and the memory of a step.

    Raises:
        OutputNotWritable: a checkpoint of the run cannot be read at present.
        OSError: one of the earlier run, or the given one, cannot be read at present.
    """
    made_for = distributed.broadcast_from_rank0(worker, lambda: _find(run, data))
    if made_for is None or made_for == worker.size:
        return run
    if worker.is_rank0:
        _tell(run, made_for, worker.size)
    return replace(run, batch_ranks=made_for)


def _find(run: Run, data: Data) -> int | None:
    """The number of ranks for the batches of the checkpoint that comes first; None: there is none."""
    configuration = configuration_digest(run, data)
    identities = (marker.identity for marker in _in_order(run))
    return next((one.made_for for one in identities if one.configuration == configuration), None)


def _in_order(run: Run) -> Iterator[Marker]:
    """Markers of the checkpoints that Checkpointer.restore would try."""
    try:
        own = list(store.markers(run.checkpoints))
    except OSError as error:
        raise output_error(run.output_dir, error) from error
    yield from (marker for marker in own if marker.identity.run == run.checkpoint_owner)
    if run.resume_from is not None:
        yield from islice(store.markers(run.resume_from / CHECKPOINTS), 1)
    if run.given_checkpoint is not None:
        try:
            yield read_marker(run.given_checkpoint)
        except (Unusable, OSError) as error:
            if is_transient(error):
                raise
            return  # the checkpointer refuses it, with the reason


def _tell(run: Run, made_for: int, ranks: int) -> None:
    """Say in the log what becomes of the batches."""
    training = run.config.training
    log.info(
        "the run began with %d ranks: each step keeps the rows that it has with them, and %d ranks share them (for other steps "
        "change Training.batch_size: then only weights and optimizer are taken from the checkpoint)",
        made_for,
        ranks,
    )
    rows = training.batch_size * made_for * training.gradient_accumulation_steps
    if training.tokens_per_step is None and ranks > rows:
        log.warning("a step has %d rows: %d of the %d ranks have none, and only wait", rows, ranks - rows, ranks)
