"""Save and restore the checkpoints of a run. Both are collectives: each rank writes and reads its own part."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_trainer.checkpoint import store, tensors
from finetune_trainer.checkpoint.identity import Identity, configuration_digest
from finetune_trainer.checkpoint.marker import STATE, Marker, Unusable, check_files, read_marker
from finetune_trainer.config.run import CHECKPOINTS
from finetune_trainer.errors import LossNotFinite, OutputInUse, output_error
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

Made = TypeVar("Made")

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
            configuration=configuration_digest(self._run, engine.data),
            world_size=self._worker.size,
            strategy=self._run.config.training.strategy,
            batch_ranks=self._run.batch_ranks,
            packed=engine.packed,
        )

    def save(self, step: int, running_loss: RunningLoss) -> Checkpoint:
        """Write a checkpoint, and remove the oldest ones. A collective.

        Raises:
            LossNotFinite: a tensor is NaN or infinite.
            OutputVolumeFull: no space is left; the previous checkpoint is intact.
            OutputNotWritable: the folder is not writable.
        """
        self.check_finite(step)
        try:
            draft = self._on_rank0(lambda: self._begin(step))
            written = distributed.all_gather(self._worker, lambda: self._write(draft, running_loss))
            files = tuple(entry for entries in written for entry in entries)
            return self._on_rank0(lambda: self._complete(draft, step, files))
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

    def check_finite(self, step: int) -> None:
        """Refuse to keep weights, or tensors of the optimizer, that are NaN or infinite. A collective.

        Raises:
            LossNotFinite: there are some.
        """
        found = distributed.all_gather(self._worker, lambda: tensors.find_not_finite(self._engine))
        broken = next((name for name in found if name is not None), None)
        if broken is not None:
            raise LossNotFinite(f"the tensor {broken} is not finite after step {step} of {self._engine.total_steps}; "
                                "try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip

    def restore(self, is_finished: Callable[[Path], bool]) -> Start:
        """Resume from the newest checkpoint of this run, else of the earlier run, else from the given one; or start at
        step 0. A collective.

        Args:
            is_finished: whether an output folder holds a complete result.

        Raises:
            ConfigError: the earlier run has finished and kept none, or what it kept or General.resume_from_checkpoint
                names does not fit.
        """
        return self._resume_own() or self._resume_earlier(is_finished) or self._resume_given() or Start()

    def _resume_own(self) -> Start | None:
        """Resume from the newest usable checkpoint of this run."""
        folder = self._run.checkpoints
        for path, marker in self._on_rank0(lambda: list(store.candidates(folder, self._identity))):
            try:
                return self._restore_all(path, marker)
            except Unusable as reason:
                self._skip(path, reason)
        return None

    def _resume_earlier(self, is_finished: Callable[[Path], bool]) -> Start | None:
        """Resume from the newest usable checkpoint of the run in `--resume_from`."""
        output, refusal = self._run.resume_from, None
        if output is None:
            return None
        folder = output / CHECKPOINTS
        for path, marker in self._on_rank0(lambda: list(store.complete_ones(folder))):
            try:
                return self._resume_other(path, marker)
            except Unusable as reason:
                refusal = refusal or store.refuse("--resume_from", path, reason)
                self._skip(path, reason)
        if refusal is None and self._on_rank0(lambda: is_finished(output)):
            refusal = store.refuse("--resume_from", output, Unusable(_FINISHED))
        if refusal is not None:
            raise refusal
        if self._worker.is_rank0:
            log.warning("there is no complete checkpoint in %s to start from", folder)
        return None

    def _resume_given(self) -> Start | None:
        """Resume from the checkpoint in `General.resume_from_checkpoint`."""
        given = self._run.given_checkpoint
        if given is None:
            return None
        try:
            return self._resume_other(given, self._on_rank0(lambda: read_marker(given)))
        except Unusable as reason:
            raise store.refuse("General.resume_from_checkpoint", given, reason) from None

    def _resume_other(self, path: Path, marker: Marker) -> Start:
        """Resume from a checkpoint of another run: exactly if all else is the same, else with weights and optimizer only."""
        difference = marker.difference(self._identity.model_copy(update={"run": marker.identity.run}))
        if difference is None:
            return self._restore_all(path, marker)
        if self._worker.is_rank0:
            log.info("only weights and optimizer are taken from the checkpoint, not its place in the data: %s", difference)
        self._restore_tensors(path, marker, self._read_rest(path, marker))
        return Start()

    def _restore_all(self, path: Path, marker: Marker) -> Start:
        """Restore tensors, schedule, scale and place in the data."""
        rest = self._read_rest(path, marker)
        if len(rest["groups"]) != len(self._engine.optimizer.param_groups):
            raise Unusable("its optimizer groups the weights in another way, since it is of another release")
        self._restore_tensors(path, marker, rest)
        return Start(marker.step, tensors.load_rest(self._engine, rest), _describe(path, marker))

    def _read_rest(self, path: Path, marker: Marker) -> dict[str, Any]:
        """Check the files, and read everything that is not a tensor. The ranks share the check of the shards: where others wrote
        them, a rank may need a part of each.

        Raises:
            Unusable: a file has changed.
        """
        shards, rank = marker.identity.shards, self._worker.rank
        mine = shards[rank % len(shards) :: self._worker.size]
        distributed.all_gather(self._worker, lambda: check_files(path, marker, (*mine, STATE)))
        rest: dict[str, Any] = json.loads((path / STATE).read_bytes())
        return rest

    def _restore_tensors(self, path: Path, marker: Marker, rest: dict[str, Any]) -> None:
        """Restore weights and optimizer.

        Raises:
            Unusable: they do not fit.
        """
        engine, worker, there = self._engine, self._worker, marker.identity
        saved: dict[str, torch.Tensor] = {}
        distributed.all_gather(worker, lambda: saved.update(tensors.read_tensors(engine, path, there, rest["optimizer"])))
        tensors.put_tensors(engine, saved)
        if worker.is_rank0:
            log.info("resuming from checkpoint %s", path)
            if there.layout != self._identity.layout:
                log.info("it was written by %s, and is read by %s", there.layout, self._identity.layout)

    def _on_rank0(self, make: Callable[[], Made]) -> Made:
        return distributed.broadcast_from_rank0(self._worker, make)

    def _skip(self, path: Path, reason: Unusable) -> None:
        if self._worker.is_rank0:
            store.skip(path, reason)


def _describe(path: Path, marker: Marker) -> Checkpoint:
    return Checkpoint(step=marker.step, path=str(path), time=marker.created_at)
