"""What the fetching program reports: while it runs over HTTP, and at its end by the pod's termination message.

The operator reads both, and neither is trusted: every string has a limit, and a version is hexadecimal digits.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

FetchReason = Literal[
    "InvalidSpec",
    "DatasetNotFound",
    "DatasetAccessDenied",
    "ModelNotFound",
    "ModelAccessDenied",
    "ChecksumMismatch",
    "FetchVolumeFull",
    "FetchFailed",
]
"""Why nothing could be fetched. The names are reasons of a FinetuneJob's status."""

MESSAGE_LIMIT = 2000
"""Characters of a message: the kubelet takes 4096 bytes of a termination message, and cuts a longer one."""

Bytes = Annotated[int, Field(ge=0, le=2**53)]
Version = Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Report(BaseModel):
    """A frozen part of a report, with camelCase keys."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True, extra="ignore")


class Fetched(Report):
    """What was fetched from one address."""

    version: Version
    """Name of the folder below the address's own: another version of the files has another."""
    origin: Annotated[str, Field(max_length=300)] = ""
    """What the version is of: a commit, an ETag or a checksum."""
    files: Bytes = 0
    size_bytes: Bytes = 0


class FetchFailure(Report):
    """Why a fetch has failed."""

    reason: FetchReason
    message: Annotated[str, Field(max_length=MESSAGE_LIMIT)]
    retryable: bool = False
    """Whether another try may succeed."""


class FetchReport(Report):
    """The end of a fetch."""

    dataset: Fetched | None = None
    model: Fetched | None = None
    failure: FetchFailure | None = None


class FetchProgress(Report):
    """How far a fetch is."""

    bytes: Bytes = 0
    """Bytes that are there, those of earlier tries included."""
    total_bytes: Bytes | None = None
    """Size of all files; absent while a server does not tell it."""
