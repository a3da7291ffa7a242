"""The options of the command line."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from finetune_trainer.config.run import Run, Saving, addresses_cluster
from finetune_trainer.errors import USAGE_EXIT_CODE

if TYPE_CHECKING:
    from finetune_trainer.config.schema import TrainerConfig


CLUSTER_WORKER_FAILURES = 3
"""How often the workers of a cluster are restarted, unless the command line says otherwise."""


class Parser(argparse.ArgumentParser):
    """An argument parser that exits with code 1 on an error: 2 is for errors in the configuration."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT_CODE, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The command line."""
    parser = Parser(prog="llm_on_ray-finetune", description="Finetune a causal language model as a YAML file says.")
    option = parser.add_argument
    option("--config_file", metavar="FILE", required=True, help="the finetuning YAML: General, Dataset, Training")
    option("--strict", action="store_true", help="unknown keys are errors, not warnings")
    option("--output_dir", metavar="DIR", type=Path, help="folder of the result, instead of General.output_dir")
    option("--dataset_dir", metavar="DIR", type=Path, help="folder in which relative data files are looked up")
    option("--model_dir", metavar="DIR", type=Path, help="load the base model from this folder; the result still "
           "names General.base_model")  # fmt: skip
    option("--model_revision", metavar="REVISION", help="commit, tag or branch of the base model on the hub")
    option("--run_name", metavar="NAME", help="name of the run, the same for each attempt at it: a complete result "
           "of this name is kept, and the command ends at once")  # fmt: skip
    option("--attempt", metavar="N", type=int, default=1, help="which attempt at the run this is (default: 1)")
    option("--resume_from", metavar="DIR", type=Path, help="output folder of an earlier run: begin from its newest complete "
           "checkpoint, as long as the run has none of its own")  # fmt: skip
    option("--checkpoint_every_steps", metavar="N", type=_count, help="write a checkpoint every N optimizer steps, 0: none "
           "(default: as General.save_strategy says)")  # fmt: skip
    option("--checkpoint_keep", metavar="K", type=_positive, default=2, help="how many checkpoints stay, the newest ones "
           "(default: 2)")  # fmt: skip
    option("--max_worker_failures", metavar="N", type=_count, help="how often lost workers are restarted, from the newest "
           "checkpoint (default: 3 in a Ray cluster, else 0)")  # fmt: skip
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    return _count(text) or _count("-1")


def make_run(options: argparse.Namespace, config: TrainerConfig) -> Run:
    """The run that the options and the configuration ask for."""
    here = Path.cwd()
    return Run(
        config=config,
        output_dir=here / (options.output_dir or Path(config.general.output_dir).expanduser()),
        dataset_dir=here / options.dataset_dir if options.dataset_dir else None,
        model_dir=here / options.model_dir if options.model_dir else None,
        model_revision=options.model_revision,
        run_name=options.run_name,
        attempt=options.attempt,
        resume_from=here / options.resume_from if options.resume_from else None,
        working_dir=here,
        saving=Saving.choose(config.general.save_strategy, options.checkpoint_every_steps, options.checkpoint_keep),
        max_worker_failures=_worker_failures(options.max_worker_failures),
    )


def _worker_failures(asked: int | None) -> int:
    """A cluster loses nodes, so its workers are restarted. On a laptop the user should look at a lost worker."""
    return asked if asked is not None else CLUSTER_WORKER_FAILURES if addresses_cluster() else 0
