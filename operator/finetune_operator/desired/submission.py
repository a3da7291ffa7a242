"""The submission for the Ray Jobs API."""

from __future__ import annotations

import shlex
from typing import Any

from finetune_operator.api.spec import CheckpointPolicy
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_operator.constants import CONFIG_FILE, CONFIG_MOUNT, DATA_MOUNT, JOB_LABEL, MODEL_MOUNT, OUTPUT_MOUNT
from finetune_operator.desired import naming
from finetune_operator.desired.storage import model_folder, resume_folder


def build_entrypoint(job: FinetuneJob, attempt: int) -> str:
    """The driver's command line, which a shell reads. Values of the user are in the mounted YAML; only the model's revision is
    here, whose pattern excludes all characters that a shell interprets.

    The driver replaces the shell (`exec`): a shell that ends at SIGTERM would leave the driver to PID 1 of the head, which
    never reaps it, and Ray would wait for it until its timeout.
    """
    arguments = [
        "python", "-m", "finetune_trainer",
        "--config_file", f"{CONFIG_MOUNT}/{CONFIG_FILE}",
        "--output_dir", f"{OUTPUT_MOUNT}/{naming.output_path(job)}",
        "--run_name", job.metadata.uid,
        "--attempt", str(attempt),
    ]  # fmt: skip
    if job.spec.dataset:
        arguments += ["--dataset_dir", DATA_MOUNT]
    if model_folder(job):
        arguments += ["--model_dir", MODEL_MOUNT]
    if job.spec.model and job.spec.model.revision:
        arguments += ["--model_revision", job.spec.model.revision]
    if folder := resume_folder(job):
        arguments += ["--resume_from", folder]
    policy, defaults = job.spec.checkpoint or CheckpointPolicy(), job.status.defaults
    every, keep = (defaults.checkpoint_every_steps, defaults.checkpoint_keep) if defaults else (policy.every_steps, policy.keep)
    arguments += ["--checkpoint_every_steps", str(every), "--checkpoint_keep", str(keep)]
    return f"exec {shlex.join(arguments)}"


def build_submission(job: FinetuneJob, attempt: int) -> dict[str, Any]:
    """Body of ``POST /api/jobs/``."""
    return {
        "entrypoint": build_entrypoint(job, attempt),
        "submission_id": naming.submission_id(job, attempt),
        "metadata": {JOB_LABEL: f"{job.metadata.namespace}/{job.metadata.name}"},
    }
