"""What a job fetches by addresses, and where it is kept.

    <claim>/<sub-path>/fetched/<address>/<version>/        mounted read-only as the data or the model of the run

The folder of the address is a function of the spec; the version is what the fetch reports, and is stored in the status before
the first attempt: so a retry and a resumed run read the same files, whatever is at the address by then.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from finetune_operator.api.spec import ClaimSource, SecretKeyReference
from finetune_operator.api.v1alpha1 import FetchedStatus, FinetuneJob
from finetune_operator.constants import FETCH_FOLDER

What = Literal["dataset", "model"]


@dataclass(frozen=True)
class Source:
    """Something to fetch."""

    what: What
    uri: str
    claim: ClaimSource | None
    """Where it is kept; None: on the output claim."""
    token: SecretKeyReference | None
    key: str
    """Folder of the address: other files of the same address have another."""

    @property
    def folder(self) -> str:
        """The folder of its versions, on the claim."""
        return "/".join(filter(None, [self.claim.sub_path if self.claim else "", FETCH_FOLDER, self.key]))


def sources(job: FinetuneJob) -> tuple[Source, ...]:
    """What the job fetches."""
    found = []
    dataset, model = job.spec.dataset, job.spec.model
    if dataset and dataset.uri:
        files = job.spec.config.dataset
        key = _key(dataset.uri, dataset.sha256, files.train_file, files.validation_file)
        found.append(Source("dataset", dataset.uri, dataset.persistent_volume_claim, dataset.token_secret_ref, key))
    if model and model.uri:
        found.append(Source("model", model.uri, model.persistent_volume_claim, model.token_secret_ref, _key(model.uri)))
    return tuple(found)


def fetched(job: FinetuneJob, what: What) -> FetchedStatus | None:
    """What was fetched, once it is stored."""
    status = job.status.fetch
    return getattr(status, what) if status else None


def is_complete(job: FinetuneJob) -> bool:
    """Whether all that the job fetches is there."""
    return all(fetched(job, source.what) for source in sources(job))


def _key(*words: str | None) -> str:
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:16]
