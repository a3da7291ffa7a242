"""What reading logs and copying files need of the client."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from finetune_client.job import Job
from finetune_client.kube.rest import Rest


class Access(Protocol):
    """The jobs of a namespace, and the API server."""

    namespace: str
    """Namespace of the jobs."""
    rest: Rest
    """Requests to the API server."""

    @property
    def server(self) -> str:
        """Address of the API server."""

    def get(self, name: str) -> Job:
        """A job."""

    def list(self) -> Sequence[Job]:
        """All jobs of the namespace."""
