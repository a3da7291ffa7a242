"""A FinetuneJob as the API server has it; its models of pydantic are made when they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from finetune_operator.api.phases import TERMINAL, Phase
from finetune_operator.constants import KIND

if TYPE_CHECKING:
    from finetune_operator.api.spec import FinetuneJobSpec
    from finetune_operator.api.status import FinetuneJobStatus

Object = dict[str, Any]

LARGEST = 1e18
"""JSON may write a number that Python reads as infinite (1e400), or that no float holds: neither is a count, a size or a time."""


@dataclass(frozen=True)
class Job:
    """One FinetuneJob. What others have written into it may be of any shape: what cannot be read is missing."""

    raw: Mapping[str, Any]
    """The object as JSON has it."""

    @property
    def name(self) -> str:
        """Its name."""
        return str(self.read("metadata", "name") or "")

    @property
    def namespace(self) -> str:
        """Its namespace."""
        return str(self.read("metadata", "namespace") or "")

    @property
    def uid(self) -> str:
        """Its UID."""
        return str(self.read("metadata", "uid") or "")

    @property
    def phase(self) -> Phase:
        """Where it stands; a job that no operator has seen yet is Pending."""
        try:
            return Phase(self.read("status", "phase") or Phase.PENDING)
        except ValueError:
            return Phase.PENDING

    @property
    def reason(self) -> str:
        """Why, in one word."""
        return str(self.read("status", "reason") or "")

    @property
    def state(self) -> str:
        """Phase and reason."""
        return f"{self.phase}, {self.reason}" if self.reason and self.reason != self.phase else str(self.phase)

    @property
    def message(self) -> str:
        """Why, in a sentence."""
        return str(self.read("status", "message") or "")

    @property
    def has_ended(self) -> bool:
        """Whether its phase is final."""
        return self.phase in TERMINAL

    @property
    def created(self) -> datetime | None:
        """When it was created."""
        return parse_time(self.read("metadata", "creationTimestamp"))

    @cached_property
    def spec(self) -> FinetuneJobSpec:
        """Its spec.

        Raises:
            pydantic.ValidationError: it is of another version.
        """
        from finetune_operator.api.spec import FinetuneJobSpec

        return FinetuneJobSpec.model_validate(self.raw.get("spec"))

    @cached_property
    def status(self) -> FinetuneJobStatus:
        """Its status, as far as this version understands it."""
        from finetune_operator.api.reading import read_status

        return read_status(self.raw)

    def read(self, *path: str) -> Any:
        """A value, or None if it or what holds it is not there."""
        value: Any = self.raw
        for key in path:
            value = value.get(key) if isinstance(value, Mapping) else None
        return value

    def number(self, *path: str) -> float | None:
        """A value that is a number of a sensible size, or None."""
        value = self.read(*path)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return value if is_number and abs(value) < LARGEST else None

    def __str__(self) -> str:
        return f"{KIND.lower()}/{self.name}"


@dataclass(frozen=True)
class Change:
    """What a watch has told."""

    kind: str
    """ADDED, MODIFIED or DELETED."""
    job: Job


@dataclass(frozen=True)
class Event:
    """An event about a job."""

    time: datetime | None
    type: str
    """Normal or Warning."""
    reason: str
    message: str


def parse_time(value: object) -> datetime | None:
    """A time as Kubernetes writes it, or None."""
    try:
        time = datetime.fromisoformat(str(value))
    except ValueError:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
