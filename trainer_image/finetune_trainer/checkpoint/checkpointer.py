"""Save and restore the checkpoints of a run. Both are collectives: each rank writes and reads its own part."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import store, tensors
from finetune_trainer.checkpoint.identity import Identity, configuration_digest
from finetune_trainer.checkpoint.marker import STATE, Marker, Unusable, check_files, read_marker
from finetune_trainer.config.run import CHECKPOINTS
from finetune_trainer.errors import OutputInUse, output_error
from finetune_trainer.explain import explain
from finetune_trainer.runtime import distributed
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.measurements import RunningLoss
from finetune_trainer.tracking.progress import Checkpoint
from finetune_trainer.versions import trainer_version

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from finetune_trainer.files import Entry
    from finetune_trainer.runtime.engine import Engine

log = logging.getLogger(__name__)

_FINISHED = "its run has finished and kept no checkpoint; General.save_strategy epoch or steps would have kept them"


@dataclass(frozen=True)
class Start:
    """The point from which the loop starts."""

    step: int = 0
    """Optimizer steps that are already done."""
    running_loss: RunningLoss = field(default_factory=RunningLoss)
    checkpoint: Checkpoint | None = None
    """The checkpoint that the run resumes from."""


class Checkpointer:
    """Saves and restores the checkpoints of a run."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._run, self._worker = engine.run, engine.worker
        self._identity = Identity(
            run=self._run.checkpoint_owner,
            configuration=configuration_digest(engine),
            world_size=self._worker.size,
            strategy=self._run.config.training.strategy,
        )

    def save(self, step: int, running_loss: RunningLoss) -> Checkpoint:
        """Write a checkpoint, and remove the oldest ones. A collective.

        Raises:
            OutputVolumeFull: no space is left; the previous checkpoint is intact.
            OutputNotWritable: the folder is not writable.
        """
        try:
            draft = distributed.broadcast_from_rank0(self._worker, lambda: self._begin(step))
            written = distributed.all_gather(self._worker, lambda: self._write(draft, running_loss))
            files = tuple(entry for entries in written for entry in entries)
            return distributed.broadcast_from_rank0(self._worker, lambda: self._complete(draft, step, files))
        except Exception as error:
            if self._worker.is_rank0 and not isinstance(error, OutputInUse):
                store.discard(self._run.checkpoints, step)
            known = output_error(self._run.output_dir, error) if isinstance(error, OSError) else None
            raise (known or explain(error, self._run) or error) from error

    def _begin(self, step: int) -> Path:
        check_still_held(self._run)
        return store.begin(self._run.checkpoints, step)

    def _write(self, draft: Path, running_loss: RunningLoss) -> list[Entry]:
        rank = self._worker.rank
        entries = []
        if self._worker.is_rank0 or self._identity.sharded:
            entries.append(tensors.save_tensors(self._engine, draft / self._identity.shard(rank)))
        if self._worker.is_rank0:
            entries.append(tensors.save_rest(self._engine, running_loss, draft / STATE))
        return entries

    def _complete(self, draft: Path, step: int, files: tuple[Entry, ...]) -> Checkpoint:
        marker = Marker(
            identity=self._identity,
            step=step,
            total_steps=self._engine.total_steps,
            trainer_version=trainer_version(),
            files=files,
        )
        check_still_held(self._run)
        path = store.complete(draft, marker)
        store.prune(self._run.checkpoints, self._identity.run, self._run.saving.keep, path)
        return _describe(path, marker)

    def restore(self, is_finished: Callable[[Path], bool]) -> Start:
        """Resume from the newest checkpoint of this run, else of the earlier run, else from the given one; or start at
        step 0. A collective.

        Args:
            is_finished: whether an output folder holds a complete result.

        Raises:
            ConfigError: the earlier run has finished and kept none, or what it kept or General.resume_from_checkpoint
                names does not fit.
        """
        folder, worker = self._run.checkpoints, self._worker
        for path, marker in distributed.broadcast_from_rank0(worker, lambda: list(store.candidates(folder, self._identity))):
            try:
                return self._load(path, marker, exact=True)
            except Unusable as reason:
                if worker.is_rank0:
                    store.skip(path, reason)
        if self._run.resume_from is not None and (start := self._load_earlier(self._run.resume_from, is_finished)) is not None:
            return start
        given = self._run.given_checkpoint
        if given is None:
            return Start()
        try:
            return self._load_other(given, distributed.broadcast_from_rank0(worker, lambda: read_marker(given)))
        except Unusable as reason:
            raise store.refuse("General.resume_from_checkpoint", given, reason) from None

    def _load_earlier(self, output: Path, is_finished: Callable[[Path], bool]) -> Start | None:
        """Resume from the newest usable checkpoint of an earlier run; None: it has left no checkpoint."""
        worker, refusal = self._worker, None
        folder = output / CHECKPOINTS
        for path, marker in distributed.broadcast_from_rank0(worker, lambda: list(store.complete_ones(folder))):
            try:
                return self._load_other(path, marker)
            except Unusable as reason:
                refusal = refusal or store.refuse("--resume_from", path, reason)
                if worker.is_rank0:
                    store.skip(path, reason)
        if refusal is None and distributed.broadcast_from_rank0(worker, lambda: is_finished(output)):
            refusal = store.refuse("--resume_from", output, Unusable(_FINISHED))
        if refusal is not None:
            raise refusal
        if worker.is_rank0:
            log.warning("there is no complete checkpoint in %s to start from", folder)
        return None

    def _load_other(self, path: Path, marker: Marker) -> Start:
        """Resume from a checkpoint of another run: exactly if all else is the same, else with weights and optimizer only."""
        own, there = self._identity, marker.identity
        difference = marker.difference(own.model_copy(update={"run": there.run}))
        if difference is not None and (own.sharded or there.sharded) and own.world_size != there.world_size:
            raise Unusable(difference)
        if difference is not None and self._worker.is_rank0:
            log.info("only weights and optimizer are taken from the checkpoint, not its place in the data: %s", difference)
        return self._load(path, marker, exact=difference is None)

    def _load(self, path: Path, marker: Marker, *, exact: bool) -> Start:
        engine, worker = self._engine, self._worker
        shard = marker.identity.shard(worker.rank)
        distributed.all_gather(worker, lambda: check_files(path, marker, (shard, STATE)))
        rest = json.loads((path / STATE).read_bytes())
        saved: dict[str, torch.Tensor] = {}
        distributed.all_gather(worker, lambda: saved.update(tensors.read_tensors(engine, path / shard, rest["optimizer"])))
        tensors.put_tensors(engine, saved)
        if worker.is_rank0:
            log.info("resuming from checkpoint %s", path)
        if not exact:
            return Start()
        return Start(marker.step, tensors.load_rest(engine, rest), _describe(path, marker))


def _describe(path: Path, marker: Marker) -> Checkpoint:
    return Checkpoint(step=marker.step, path=str(path), time=marker.created_at)
