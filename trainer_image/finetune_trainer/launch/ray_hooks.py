"""Classes that Ray Train calls: its trainer, the meeting of the process group, and the end after an error that would recur.

Import this module only after Ray's environment is set: Ray reads it when it is imported.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from finetune_trainer.config.run import RESTARTS
from finetune_trainer.launch.worker_errors import find_cause

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


class Trainer(DataParallelTrainer):  # type: ignore[misc]  # Ray has no types
    """Ray Train's trainer without its handler of Ctrl-C, which would abort the run."""

    def _register_sigint_handler(self, *args: Any) -> None:
        pass


class Rendezvous(Backend):  # type: ignore[misc]
    """Tells all workers where rank 0 listens, and how many groups of workers preceded theirs."""

    restarts = -1

    def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ARG002 - Ray's signature
        """Set the environment variables that torch.distributed reads."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        self.restarts += 1
        variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), RESTARTS: str(self.restarts)}
        worker_group.execute(set_environment, variables)


def set_environment(variables: dict[str, str]) -> None:
    """Set environment variables of this process."""
    os.environ.update(variables)


@dataclass
class RendezvousConfig(BackendConfig):  # type: ignore[misc]
    """Names the class above to Ray Train."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The class."""
        return Rendezvous


class FinalErrors(UserCallback):  # type: ignore[misc]
    """Ends the run after an error that would recur, whatever max_failures is. Ray Train's controller calls it."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002 - Ray's
        """Raise the cause, if it would recur: Ray Train retries only failures of workers, not of a callback."""
        cause = find_cause(worker_exceptions, self._run)
        if cause is not None and not cause.retryable:
            raise cause
