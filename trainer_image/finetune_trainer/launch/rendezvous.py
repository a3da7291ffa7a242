"""Tell the workers where their process group meets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from finetune_trainer.config.run import RESTARTS


def rendezvous() -> Any:
    """A backend for Ray Train that tells all workers where rank 0 listens, and how many groups preceded theirs."""
    from ray.train._internal.utils import get_address_and_port
    from ray.train.backend import Backend, BackendConfig

    class RendezvousBackend(Backend):  # type: ignore[misc]
        restarts = -1

        def on_start(self, worker_group: Any, backend_config: Any) -> None:  # noqa: ARG002 - Ray's signature
            address, port = worker_group.execute_single(0, get_address_and_port)
            self.restarts += 1
            variables = {"MASTER_ADDR": address, "MASTER_PORT": str(port), RESTARTS: str(self.restarts)}
            worker_group.execute(set_environment, variables)

    @dataclass
    class RendezvousConfig(BackendConfig):  # type: ignore[misc]
        @property
        def backend_cls(self) -> type[Backend]:
            return RendezvousBackend

    return RendezvousConfig()


def set_environment(variables: dict[str, str]) -> None:
    """Set environment variables of this process."""
    os.environ.update(variables)
