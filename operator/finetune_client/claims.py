"""Folders of this machine that stand for the PersistentVolumeClaims of a job."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path

from finetune_operator.api.reasons import Problem
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.desired import naming
from finetune_operator.desired.sources import Source
from finetune_operator.desired.storage import dataset_folder, model_folder, required_claims
from finetune_operator.observed import missing_object

NAMESPACE = "local"


class Folders:
    """Where the job's claims are on this machine."""

    def __init__(self, job: FinetuneJob, claims: Mapping[str, Path], claims_dir: Path) -> None:
        self._job = job
        self._claims = claims
        self._claims_dir = claims_dir

    def claim(self, name: str) -> Path:
        """The folder that stands for a claim."""
        return self._claims.get(name, self._claims_dir / name).absolute()

    def unknown(self) -> list[str]:
        """What is wrong with the names of ``--claim``: each must be a claim of the manifest."""
        names = sorted({*required_claims(self._job).values(), naming.output_claim_name(self._job)})
        near = {name: get_close_matches(name, names, 1) for name in self._claims if name not in names}
        known = ", ".join(names)
        return [
            f"--claim {name}: the job has no such claim; {f'did you mean {found[0]}?' if found else f'it has {known}'}"
            for name, found in near.items()
        ]

    def missing(self) -> tuple[Problem, ...]:
        """Claims that must exist and whose folder does not; the output claim's is made, as a cluster would have it."""
        required = required_claims(self._job).items()
        absent = [(key, name) for key, name in required if not self.claim(name).is_dir() and not key.startswith("output")]
        return tuple(missing_object("PersistentVolumeClaim", *item, NAMESPACE) for item in absent)

    @property
    def output(self) -> Path:
        """The job's folder on its output claim."""
        return self.claim(naming.output_claim_name(self._job)) / naming.output_path(self._job)

    @property
    def dataset(self) -> Path | None:
        """The folder of the data set's claim, if the job names one."""
        claim = dataset_folder(self._job)
        return self.claim(claim.claim_name) / claim.sub_path if claim else None

    @property
    def model(self) -> Path | None:
        """The folder of the model's claim, if the job names one."""
        claim = model_folder(self._job)
        return self.claim(claim.claim_name) / claim.sub_path if claim else None

    def kept(self, source: Source) -> Path:
        """The folder for the versions of something that is fetched."""
        name = source.claim.claim_name if source.claim else naming.output_claim_name(self._job)
        return self.claim(name) / source.folder

    def arguments(self) -> list[str]:
        """Options of the trainer for what the job mounts."""
        folders = {"--dataset_dir": self.dataset, "--model_dir": self.model}
        return [word for option, folder in folders.items() if folder for word in (option, str(folder))]
