"""The FinetuneJob resource, version v1alpha1, as frozen models. `api.crd` renders the CRD from them."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from finetune_operator.api.base import Model, Time, dump
from finetune_operator.api.phases import TERMINAL, Phase
from finetune_operator.api.pods import PodOptions
from finetune_operator.api.reasons import Reason
from finetune_operator.api.spec import FinetuneJobSpec, RetryPolicy
from finetune_operator.api.status import (
    AttemptStatus,
    CheckpointStatus,
    Condition,
    ConditionType,
    FetchedStatus,
    FetchStatus,
    FinetuneJobStatus,
    OutputStatus,
    ProgressStatus,
    RayStatus,
    ResolvedDefaults,
    ResultStatus,
    ResumeStatus,
)
from finetune_operator.constants import MAX_JOB_NAME

__all__ = [
    "TERMINAL",
    "AttemptStatus",
    "CheckpointStatus",
    "Condition",
    "ConditionType",
    "FetchStatus",
    "FetchedStatus",
    "FinetuneJob",
    "FinetuneJobSpec",
    "FinetuneJobStatus",
    "JobIdentity",
    "Metadata",
    "OutputStatus",
    "Phase",
    "PodOptions",
    "ProgressStatus",
    "RayStatus",
    "Reason",
    "ResolvedDefaults",
    "ResultStatus",
    "ResumeStatus",
    "RetryPolicy",
    "dump",
]


RESUMES_ITSELF = "spec.resumeFrom names another, earlier FinetuneJob: no job can begin from itself"


class Metadata(Model):
    """The parts of metadata that the operator reads."""

    name: Annotated[str, StringConstraints(max_length=MAX_JOB_NAME, pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
    namespace: str
    uid: str
    generation: int = 1
    labels: dict[str, str] = Field(default_factory=dict)
    resource_version: str = ""
    deletion_timestamp: Time | None = None
    """When somebody has deleted the job; it stays while finalizers of others hold it."""


class JobIdentity(Model):
    """A job without its spec: all that is known of one whose spec this version cannot read."""

    metadata: Metadata
    status: FinetuneJobStatus = FinetuneJobStatus()

    @property
    def key(self) -> tuple[str, str]:
        """(namespace, name)."""
        return self.metadata.namespace, self.metadata.name


class FinetuneJob(JobIdentity):
    """One object."""

    spec: FinetuneJobSpec

    @model_validator(mode="after")
    def _resumes_another(self) -> Self:
        if self.spec.resume_from == self.metadata.name:
            raise ValueError(RESUMES_ITSELF)
        return self
