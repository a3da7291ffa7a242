"""What the API server cannot check for itself, checked before anything is made for a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from finetune_operator.api.base import Model
from finetune_operator.api.cel import check_rules
from finetune_operator.api.metadata import is_qualified_name
from finetune_operator.api.schema import crd_schema
from finetune_operator.api.v1alpha1 import FinetuneJob


class Limits(Model):
    """What is allowed in a namespace; None: as elsewhere."""

    allow_remote_code: bool | None = None
    """Whether a model may bring code of its own."""
    allowed_image_prefixes: tuple[str, ...] | None = None
    """With what spec.image may begin; none means anything."""


class Policy(Limits):
    """What the administrator allows, here and in single namespaces."""

    allow_remote_code: bool | None = False
    allowed_image_prefixes: tuple[str, ...] | None = ()
    namespaces: dict[str, Limits] = Field(default_factory=dict)
    """Namespace → what is different there."""

    def remote_code_allowed(self, namespace: str) -> bool:
        """Whether a job of this namespace may run a model's own code."""
        here = self.namespaces.get(namespace, Limits()).allow_remote_code
        return bool(self.allow_remote_code if here is None else here)

    def image_prefixes(self, namespace: str) -> tuple[str, ...]:
        """With what spec.image of a job of this namespace may begin; none means anything."""
        here = self.namespaces.get(namespace, Limits()).allowed_image_prefixes
        return (self.allowed_image_prefixes if here is None else here) or ()


def refusals(job: FinetuneJob, policy: Policy) -> list[str]:
    """Why a job may not run, one sentence each."""
    return [*_policy_refusals(job, policy), *malformed_keys(job)]


def broken_rules(spec: Mapping[str, Any]) -> list[str]:
    """The rules of the CRD that a stored spec breaks, one sentence each: it may be older than they are."""
    verdict = check_rules(crd_schema()["properties"]["spec"], spec)
    return [str(finding) for finding in (*verdict.broken, *verdict.undecided)]


def _policy_refusals(job: FinetuneJob, policy: Policy) -> Iterator[str]:
    namespace, image = job.metadata.namespace, job.spec.image
    if job.spec.config.general.config.trust_remote_code and not policy.remote_code_allowed(namespace):
        yield "config.General.config.trust_remote_code: the administrator does not allow models that bring code of their own"
    prefixes = policy.image_prefixes(namespace)
    if image and prefixes and not image.startswith(prefixes):
        yield f"image: the administrator allows images that begin with {', '.join(prefixes)}"


def malformed_keys(job: FinetuneJob) -> list[str]:
    """Keys of labels, annotations and node selectors that no pod may have; a schema cannot tell them (see `api.pods`)."""
    found = []
    for where, options in (("head", job.spec.head), ("workers", job.spec.workers)):
        for field in ("labels", "annotations", "node_selector"):
            keys = (getattr(options, field) or {}) if options else {}
            name = "nodeSelector" if field == "node_selector" else field
            found += [f"{where}.{name}: {key!r} is no qualified name" for key in keys if not is_qualified_name(key)]
    return found
