"""A manifest of this machine as the job that an API server would make of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from uuid import NAMESPACE_OID, uuid5

from pydantic import ValidationError

from finetune_client.claims import NAMESPACE
from finetune_client.manifest import Document
from finetune_client.submission import is_bare
from finetune_client.validate import check_object, is_job
from finetune_operator.api.schema import Finding
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import API_VERSION, KIND
from finetune_trainer.errors import ConfigError


def find_job(documents: Sequence[Document], filename: str) -> Document:
    """The one FinetuneJob among the documents of a file; objects of other kinds may be there too.

    Raises:
        ConfigError: there is none, or more than one, or the file cannot be read.
    """
    if any(is_bare(document.value) for document in documents):
        raise ConfigError(
            [f"{filename}: a finetuning YAML, and no FinetuneJob: use `llm_on_ray-finetune --config_file {filename}`"]
        )
    if wrong := [line for document in documents for line in document.errors()]:
        raise ConfigError(wrong)
    jobs = [document for document in documents if is_job(document.value)]
    if len(jobs) != 1:
        raise ConfigError([f"{filename}: must hold one FinetuneJob, not {len(jobs)}"])
    value = jobs[0].value
    if not isinstance(value, dict) or (value.get("apiVersion"), value.get("kind")) != (API_VERSION, KIND):
        raise ConfigError(jobs[0].errors([Finding((), f"not a FinetuneJob: apiVersion must be {API_VERSION} and kind {KIND}")]))
    return jobs[0]


def read_job(document: Document, further: Callable[[FinetuneJob], Iterable[Finding]] = lambda _: ()) -> FinetuneJob:
    """A manifest as a job with the metadata that an API server would add; `further` finds what else is wrong.

    Raises:
        ConfigError: with the errors, each with file, line and path.
    """
    manifest: Mapping[str, Any] = document.value
    given = manifest.get("metadata")
    metadata = given | {"namespace": NAMESPACE, "uid": _uid(manifest)} if isinstance(given, dict) else given
    try:
        job = FinetuneJob.model_validate({"metadata": metadata, "spec": manifest.get("spec")})
    except ValidationError as error:
        raise ConfigError(document.errors(Finding(item["loc"], item["msg"]) for item in error.errors())) from None
    findings = [*check_object(manifest), *further(job)]
    if findings:
        raise ConfigError(document.errors(findings))
    return job


def _uid(manifest: Mapping[str, Any]) -> str:
    """A UID by name and spec: so the same manifest has the same output folder, where a stopped run goes on."""
    name = manifest["metadata"].get("name")
    return str(uuid5(NAMESPACE_OID, json.dumps([name, manifest.get("spec")], sort_keys=True, default=str)))
