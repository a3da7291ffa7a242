"""Save and restore the checkpoints of a run. Both are collectives: each rank writes and reads its own part.

A checkpoint is written by a thread from copies in host memory, while the steps go on. One is in flight at a time.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from finetune_trainer.checkpoint import store, tensors
from finetune_trainer.checkpoint.identity import Identity, configuration_digest
from finetune_trainer.checkpoint.marker import STATE, Marker, Unusable, check_files, read_marker
from finetune_trainer.config.run import CHECKPOINTS
from finetune_trainer.errors import LossNotFinite, output_error
from finetune_trainer.explain import explain
from finetune_trainer.files import write_described
from finetune_trainer.runtime import distributed, host
from finetune_trainer.runtime.background import InBackground
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.measurements import RunningLoss
from finetune_trainer.tracking.progress import Checkpoint
from finetune_trainer.versions import trainer_version

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    import torch

    from finetune_trainer.files import Entry
    from finetune_trainer.runtime.engine import Engine

    Write = Callable[[Path, Iterable[bytes | memoryview]], Entry]

log = logging.getLogger(__name__)

Made = TypeVar("Made")

COPY_SHARE = 0.5
"""Part of the host's free memory that copies may take: what the steps need varies with the lengths of the rows."""

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

    def __init__(
        self, engine: Engine, write: Write = write_described, free_memory: Callable[[], int] = host.available_memory
    ) -> None:
        """Prepare the checkpoints of an engine. A collective.

        Args:
            engine: whose state is saved.
            write: writes a file and syncs it to the disk; returns its size and digest.
            free_memory: bytes of host memory that copies could take; 0: unknown.
        """
        self._engine, self._write_file, self._free_memory = engine, write, free_memory
        self._run, self._worker = engine.run, engine.worker
        self._beside = distributed.with_own_group(engine.worker)
        self._in_flight: InBackground[Checkpoint] | None = None
        self._identity = Identity(
            run=self._run.checkpoint_owner,
            configuration=configuration_digest(self._run, engine.data),
            world_size=self._worker.size,
            strategy=self._run.config.training.strategy,
            batch_ranks=self._run.batch_ranks,
            packed=engine.packed,
        )

    def begin(self, step: int, running_loss: RunningLoss) -> None:
        """Begin to write a checkpoint of this moment, when there is none in flight. A collective.

        It waits for the end where the host has no memory for copies: otherwise the next step would change what is written.

        Raises:
            LossNotFinite: a tensor is NaN or infinite.
        """
        self.check_finite(step)
        writes = self._worker.is_rank0 or self._identity.sharded
        state = tensors.state_of(self._engine) if writes else {}
        copies = self._has_room(state)
        if copies:
            state = tensors.copy_to_host(state)
        rest = tensors.rest_of(self._engine, running_loss)
        self._in_flight = InBackground(f"checkpoint-{step}", lambda: self._save(step, state, rest))
        if not copies:
            self._in_flight.wait()

    @property
    def is_writing(self) -> bool:
        """Whether the checkpoint in flight is not complete yet, as far as this rank knows."""
        return self._in_flight is not None and not self._in_flight.done

    def finish(self) -> Checkpoint | None:
        """Wait for the checkpoint in flight; return it, or None if there is none.

        Raises:
            OutputVolumeFull: no space was left; the previous checkpoint is intact.
            OutputNotWritable: the folder was not writable.
        """
        if self._in_flight is None:
            return None
        in_flight, self._in_flight = self._in_flight, None
        return in_flight.result()

    def _has_room(self, state: dict[str, torch.Tensor]) -> bool:
        """Whether all ranks have the memory for copies of what they write. A collective."""
        size = sum(tensor.nbytes for tensor in state.values())
        writers = self._worker.local_size if self._identity.sharded else 1
        lacks = size * writers > COPY_SHARE * self._free_memory()
        return not distributed.sum_over_ranks(lacks)[0]

    def _save(self, step: int, state: dict[str, torch.Tensor], rest: bytes) -> Checkpoint:
        """Write a checkpoint, and remove the oldest ones. A collective of the threads."""
        draft: Path | None = None
        try:
            draft = distributed.broadcast_from_rank0(self._beside, lambda: self._begin(step))
            return self._fill(draft, step, state, rest)
        except Exception as error:
            if self._worker.is_rank0 and draft is not None:
                store.discard(draft)
            known = output_error(self._run.output_dir, error) if isinstance(error, OSError) else None
            raise (known or explain(error, self._run) or error) from error

    def _begin(self, step: int) -> Path:
        check_still_held(self._run)
        return store.begin(self._run.checkpoints, step)

    def _fill(self, draft: Path, step: int, state: dict[str, torch.Tensor], rest: bytes) -> Checkpoint:
        written = distributed.all_gather(self._beside, lambda: self._write(draft, state, rest))
        files = tuple(entry for entries in written for entry in entries)
        return distributed.broadcast_from_rank0(self._beside, lambda: self._complete(draft, step, files))

    def _write(self, draft: Path, state: dict[str, torch.Tensor], rest: bytes) -> list[Entry]:
        entries = []
        if state:
            entries.append(self._write_file(draft / self._identity.shard(self._worker.rank), tensors.safetensors(state)))
        if self._worker.is_rank0:
            entries.append(self._write_file(draft / STATE, [rest]))
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
            OutputNotWritable: a checkpoint of this run cannot be read at present: it may be the newest one.
            OSError: one of the earlier run, or the given one, cannot be read at present.
        """
        return self._resume_own() or self._resume_earlier(is_finished) or self._resume_given() or Start()

    def _resume_own(self) -> Start | None:
        """Resume from the newest usable checkpoint of this run."""
        folder = self._run.checkpoints
        try:
            for path, marker in self._on_rank0(lambda: list(store.candidates(folder, self._identity))):
                try:
                    return self._restore_all(path, marker)
                except Unusable as reason:
                    self._skip(path, reason)
        except OSError as error:
            raise output_error(self._run.output_dir, error) from error
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
        with store.refusing("General.resume_from_checkpoint", given):
            return self._resume_other(given, self._on_rank0(lambda: read_marker(given)))

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
            OSError: one cannot be read at present, by any rank.
        """
        shards, rank = marker.identity.shards, self._worker.rank
        mine = shards[rank % len(shards) :: self._worker.size]
        rest: dict[str, Any] = {}

        def read() -> None:
            check_files(path, marker, (*mine, STATE))
            rest.update(json.loads((path / STATE).read_bytes()))

        distributed.all_gather(self._worker, read)
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
