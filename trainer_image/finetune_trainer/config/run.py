"""One run: its configuration and the options of the command line, with absolute paths."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.files import digest

if TYPE_CHECKING:
    from finetune_trainer.config.schema import TrainerConfig

LOGS = "logs"
"""Folder below the output folder for the files that are written during the run."""

CHECKPOINTS = "checkpoints"
"""Folder below the output folder with the checkpoints."""

TOKENS = ".tokens"
"""Folder below the output folder with the tokenised rows. It is removed when the result is complete."""

COMPILED = ".compiled"
"""Folder below the output folder with what torch has compiled. It is removed when the result is complete."""

MERGED = "merged"
"""Folder below the output folder with the merged model."""

REPORT_FILE = "report.html"
"""Name of the report in the output folder."""

STEPS_BETWEEN = 100
"""Optimizer steps between two checkpoints with save_strategy: steps."""


RESTARTS = "FINETUNE_RESTARTS"
"""Environment variable of a Ray worker: how many groups of workers preceded its own."""


@dataclass(frozen=True)
class Saving:
    """When checkpoints are written, and how many are kept."""

    every_steps: int = 0
    """Optimizer steps between two; 0: none by number."""
    each_epoch: bool = False
    keep: int = 2
    """How many of the newest ones are kept."""
    after_export: bool = False
    """Whether they are kept after the export of the result."""

    @classmethod
    def choose(cls, strategy: str, every_steps: int | None, keep: int) -> Saving:
        """The schedule by General.save_strategy, unless the command line has its own."""
        if every_steps is None:
            return cls(STEPS_BETWEEN if strategy == "steps" else 0, strategy == "epoch", keep, strategy != "no")
        return cls(every_steps, keep=keep, after_export=strategy != "no")

    def is_due(self, step: int, *, ends_epoch: bool) -> bool:
        """Whether a checkpoint is due after this step."""
        return (self.every_steps > 0 and step % self.every_steps == 0) or (self.each_epoch and ends_epoch)


@dataclass(frozen=True)
class Run:
    """One run of the trainer. It is sent to every Ray worker."""

    config: TrainerConfig
    output_dir: Path
    """Absolute folder of the result; in a cluster on a volume that all workers share."""
    dataset_dir: Path | None = None
    """Folder in which relative data files are looked up; None: the working folder."""
    model_dir: Path | None = None
    """Folder of the base model; None: General.base_model names a folder or a model on the hub."""
    model_revision: str | None = None
    """Commit, tag or branch of the base model on the hub; None: its main branch."""
    run_name: str | None = None
    """Name that all attempts at this run share; None: the run goes on from an unfinished one of the same command only."""
    attempt: int = 1
    """Which submission of the run this is, from 1."""
    resume_from: Path | None = None
    """Output folder of an earlier run from whose newest checkpoint this run starts; nothing is written there."""
    working_dir: Path = Path()
    """Folder in which the command was started: Ray workers start in another one."""
    saving: Saving = Saving()
    """When checkpoints are written."""
    max_worker_failures: int = 0
    """How often Ray Train may restart the workers."""
    batch_ranks: int | None = None
    """Ranks that the batches are made for, if the run goes on from a checkpoint of one that began with another number; None: as
    many as there are."""
    lock: str | None = None
    """Token of the lock that this start of the command has on the output folder; None: it runs without a lock."""

    @property
    def logs(self) -> Path:
        """Folder of progress.json and metrics.jsonl."""
        return self.output_dir / LOGS

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.output_dir / CHECKPOINTS

    @property
    def tokens(self) -> Path:
        """Folder of the tokenised rows."""
        return self.output_dir / TOKENS

    @property
    def compiled(self) -> Path:
        """Folder of what torch has compiled."""
        return self.output_dir / COMPILED

    @property
    def checkpoint_owner(self) -> str:
        """The owner in the markers of the run's checkpoints: a run without a name resumes those of the same command only."""
        if self.run_name:
            return self.run_name
        paths = (self.dataset_dir, self.model_dir, self.model_revision, self.resume_from)
        settings = [self.config.model_dump(mode="json", by_alias=True), *map(str, paths)]
        return f"(unnamed, {digest(json.dumps(settings, sort_keys=True).encode())[:12]})"

    @property
    def given_checkpoint(self) -> Path | None:
        """The checkpoint that General.resume_from_checkpoint names."""
        name = self.config.general.resume_from_checkpoint
        return None if name is None else self.working_dir / Path(name).expanduser()

    @property
    def train_file(self) -> Path:
        """Where the training rows are."""
        return self._data_file(self.config.dataset.train_file)

    @property
    def validation_file(self) -> Path | None:
        """Where the evaluation rows are, unless they are split off the training rows."""
        name = self.config.dataset.validation_file
        return None if name is None else self._data_file(name)

    @property
    def model_source(self) -> str:
        """What the model is loaded from: a folder, or its name on the hub."""
        return str(self.model_dir) if self.model_dir else self._folder_or_name(self.config.general.base_model)

    @property
    def tokenizer_source(self) -> str:
        """What the tokenizer is loaded from: a folder, or its name on the hub."""
        name = self.config.general.tokenizer_name
        return self.model_source if name is None else self._folder_or_name(name)

    def _data_file(self, name: str) -> Path:
        return (self.dataset_dir or self.working_dir) / Path(name).expanduser()

    def _folder_or_name(self, name: str) -> str:
        folder = self.working_dir / Path(name).expanduser()
        return str(folder) if folder.is_dir() else name


def addresses_cluster() -> bool:
    """Whether the run uses an existing Ray cluster: this is the driver of a Ray job, or RAY_ADDRESS is set."""
    return any(os.environ.get(name) for name in ("RAY_ADDRESS", "RAY_JOB_ID"))
