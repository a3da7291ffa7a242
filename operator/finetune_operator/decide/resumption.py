"""``spec.resumeFrom``: the checkpoint of an earlier job from which a new job starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.reading import read_status
from finetune_operator.api.v1alpha1 import TERMINAL, FinetuneJobStatus, Phase, Reason, ResumeStatus
from finetune_operator.observed import Missing


def resume_point(raw: Mapping[str, Any]) -> ResumeStatus | Missing | str:
    """The source for a job that names this one: its folder, or its own source if it has made no checkpoint.

    A job waits until this one has ended or is suspended. A name: this one never started from the job of that name.
    """
    name, uid = raw["metadata"]["name"], raw["metadata"]["uid"]
    status = read_status(raw)
    if status.phase not in {*TERMINAL, Phase.SUSPENDED}:
        message = f"FinetuneJob {name!r} (spec.resumeFrom) is {status.phase or Phase.PENDING}: it has to end or to be suspended"
        return Missing(Reason.WAITING_FOR_JOB, message)
    output = status.output
    if output is None or status.start_time is None:
        before: str | None = raw["spec"].get("resumeFrom")
        return status.resume or before or ResumeStatus(job=name, uid=uid)
    has_run_to_the_end = status.phase is Phase.SUCCEEDED
    if status.resume is not None and not has_run_to_the_end and not _has_own_checkpoint(status, output.path):
        return status.resume
    return ResumeStatus(job=name, uid=uid, persistent_volume_claim=output.persistent_volume_claim, path=output.path)


def _has_own_checkpoint(status: FinetuneJobStatus, folder: str) -> bool:
    """Whether its newest reported checkpoint is its own: before its first one it reports the one that it started from."""
    return status.checkpoint is not None and f"/{folder}/" in status.checkpoint.path


def resume_note(resume: ResumeStatus | None) -> tuple[str, ...]:
    """What the user should know."""
    if resume is None or resume.persistent_volume_claim is not None:
        return ()
    return (f"resumeFrom: FinetuneJob {resume.job!r} has never run, so this job begins at the beginning",)
