"""What the API server cannot check for itself, checked before anything is made for a job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from finetune_operator.api.cel import check_rules
from finetune_operator.api.metadata import is_qualified_name
from finetune_operator.api.policy import Policy
from finetune_operator.api.schema import crd_schema
from finetune_operator.api.v1alpha1 import FinetuneJob


def refusals(job: FinetuneJob, policy: Policy) -> list[str]:
    """Why a job may not run, one sentence each."""
    return [*policy.refusals(job), *malformed_keys(job)]


def broken_rules(spec: Mapping[str, Any]) -> list[str]:
    """The rules of the CRD that a stored spec breaks, one sentence each: it may be older than they are."""
    verdict = check_rules(crd_schema()["properties"]["spec"], spec)
    return [str(finding) for finding in (*verdict.broken, *verdict.undecided)]


def malformed_keys(job: FinetuneJob) -> list[str]:
    """Keys of labels, annotations and node selectors that no pod may have; a schema cannot tell them (see `api.pods`)."""
    found = []
    for where, options in (("head", job.spec.head), ("workers", job.spec.workers)):
        for field in ("labels", "annotations", "node_selector"):
            keys = (getattr(options, field) or {}) if options else {}
            name = "nodeSelector" if field == "node_selector" else field
            found += [f"{where}.{name}: {key!r} is no qualified name" for key in keys if not is_qualified_name(key)]
    return found
