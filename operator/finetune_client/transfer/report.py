"""`FinetuneClient.report`: what a run tells of itself, from its output claim, finished or not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from finetune_client.access import Access
from finetune_client.errors import JobEndedError, RefusedError, look_at
from finetune_client.home import at_home
from finetune_client.job import Job
from finetune_client.transfer.api import Say, image_of
from finetune_client.transfer.copies import PART_BYTES
from finetune_client.transfer.pod import Helper, helper
from finetune_client.transfer.server import PARTIAL

REPORT = "report.html"
RECORDS = ("logs/metrics.jsonl", "logs/samples.json", "logs/summary.json")
"""What the report is made of, for programs."""


def report(client: Access, name: str, folder: str | Path, image: str | None, say: Say) -> Path:
    """Copy the report of a job and what it is made of; see `FinetuneClient.report`."""
    job = client.get(name)
    target = at_home(folder)
    if REPORT not in copy(client, job, (REPORT, *RECORDS), target, image, say):
        hint = f"the trainer writes it when a run ends; `finetune compare {name}` draws the curves so far"
        raise JobEndedError(f"{job} has no report ({job.state})", hint if not job.has_ended else look_at(name))
    return target / REPORT


def copy(client: Access, job: Job, names: Sequence[str], folder: Path, image: str | None, say: Say) -> list[str]:
    """Copy small files of a run, as they are now, to a folder; give the names of those that are there.

    Raises:
        JobEndedError: the job has no output folder yet.
    """
    output, ray = job.status.output, job.status.ray
    if output is None:
        raise JobEndedError(f"{job} has not run yet ({job.state})", look_at(job.name))
    near = None if job.has_ended or ray is None else ray.cluster
    claim = output.persistent_volume_claim
    with helper(client, claim, image or image_of(client, job), read_only=True, tell=say, near=near) as pod:
        return [name for name in names if _copy(pod, f"{output.path}/{name}", folder / PurePosixPath(name))]


def _copy(pod: Helper, source: str, target: Path) -> bool:
    """Copy a file that may be written meanwhile; whether it is there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + PARTIAL)
    try:
        with partial.open("wb") as file:
            while data := pod.read(source, file.tell(), PART_BYTES):
                file.write(data)
    except RefusedError as error:
        partial.unlink()
        if error.status != 404:
            raise
        return False
    partial.replace(target)
    return True
