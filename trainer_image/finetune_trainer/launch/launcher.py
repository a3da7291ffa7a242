"""Start the workers: in this process when one is enough, else with Ray Train, locally or in a cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.launch.allocator import set_up_memory
from finetune_trainer.tracking import logbook
from finetune_trainer.tracking.stages import IMPORTING, enter_stage

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def launch(run: Run) -> None:
    """Train, and wait for the end.

    Raises:
        TrainerError: a failure with a known cause.
    """
    if run.config.training.ranks == 1 and not addresses_cluster():
        _train_here(run)
    else:
        from finetune_trainer.launch.ray_driver import train_with_ray

        train_with_ray(run)


def _train_here(run: Run) -> None:
    enter_stage(run, 0, IMPORTING)
    set_up_memory()
    from finetune_trainer.runtime import distributed
    from finetune_trainer.training.train import train

    with logbook.keep(run.logs, run.attempt, "rank-0"):
        train(run, distributed.single_process(run.config.training))
