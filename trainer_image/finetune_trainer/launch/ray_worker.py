"""What Ray Train runs on each worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.errors import in_words
from finetune_trainer.explain import explain
from finetune_trainer.launch.allocator import set_up_memory
from finetune_trainer.tracking import logbook
from finetune_trainer.tracking.stages import IMPORTING, enter_stage

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def train_on_worker(config: dict[str, Any]) -> None:
    """What Ray Train runs on each worker."""
    from ray import train

    run: Run = config["run"]
    rank = train.get_context().get_world_rank()
    try:
        enter_stage(run, rank, IMPORTING)
        set_up_memory()
        with logbook.keep(run.logs, run.attempt, f"rank-{rank}"):
            _train_in_group(run, train.report)
    except Exception as error:
        # Keep the process group: otherwise the other ranks would fail too, and Ray Train might report them first.
        known = explain(error, run)
        if known is error:
            raise
        # Ray drops the traceback, and some libraries' errors cannot be pickled for the driver.
        raise known or in_words(error, f"rank {rank}: ") from error


def _train_in_group(run: Run, report: Any) -> None:
    from finetune_trainer.runtime import distributed
    from finetune_trainer.training.train import train

    train(run, distributed.init_process_group(run.config.training), report, is_preempted)
    distributed.destroy_process_group()


def is_preempted() -> bool:
    """Whether Ray has notified this worker that the node of a worker will be taken away."""
    # Ray's public get_preemption_info is a barrier of all workers across an actor, too slow for every step.
    from ray.train.v2._internal.execution.context import get_train_context

    return get_train_context().preemption_context.preemption_info is not None
