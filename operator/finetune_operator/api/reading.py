"""Reads a FinetuneJob as the API server has it: the spec strictly, the status as far as this version understands it.

Others may have edited a status, or a later version may have written it. What cannot be read is left out, and overwritten
with the next write.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from finetune_operator.api.v1alpha1 import ConditionType, FinetuneJob, FinetuneJobStatus, JobIdentity, Metadata, Phase

MOST_ERRORS = 200
"""Parts of a status that are left out, at most; a status with more is not read at all."""


def read_job(raw: Mapping[str, Any]) -> tuple[FinetuneJob, None] | tuple[JobIdentity, str]:
    """A job; or, if its spec cannot be read, what else is known of it, and the errors. Objects may be older than the rules
    that would refuse them now.
    """
    status = read_status(raw)
    try:
        return FinetuneJob.model_validate({**raw, "status": status}), None
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
    metadata = raw["metadata"]
    identity = {name: metadata[name] for name in ("name", "namespace", "uid", "generation", "labels") if name in metadata}
    return JobIdentity(metadata=Metadata.model_construct(**identity), status=status), problems


def read_status(raw: Mapping[str, Any]) -> FinetuneJobStatus:
    """The status of a job, without what cannot be read."""
    value = raw.get("status") or {}
    for number in range(MOST_ERRORS):
        try:
            return _with_phase(FinetuneJobStatus.model_validate(value))
        except ValidationError as error:
            found = error.errors()[0]
            if not found["loc"]:
                break
            value = value if number else copy.deepcopy(value)
            _leave_out(value, found["loc"], is_missing=found["type"] == "missing")
    return FinetuneJobStatus()


def _leave_out(value: Any, path: tuple[int | str, ...], *, is_missing: bool) -> None:
    """Remove the value at a path; the whole item of a list; what holds it, if it is a key that is missing."""
    path = path[:-1] if is_missing else path
    index = next((place for place, key in enumerate(path) if isinstance(key, int)), len(path) - 1)
    for key in path[:index]:
        value = value[key]
    del value[path[index]]


def _with_phase(status: FinetuneJobStatus) -> FinetuneJobStatus:
    """A job that has ended has a phase, even if that was not readable: it never runs again."""
    if status.phase is not None or status.completion_time is None:
        return status
    complete = any(item.type == ConditionType.COMPLETE and item.status == "True" for item in status.conditions)
    return status.model_copy(update={"phase": Phase.SUCCEEDED if complete else Phase.FAILED})
