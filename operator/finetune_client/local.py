"""``finetune run --local``: run the trainer as a process on this machine, with the same decisions about its outcome.

Folders stand for PersistentVolumeClaims, a subprocess for the Ray job; what the job's status says is decided by the
operator's own `decide`.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from textwrap import indent
from typing import Any

from ruamel.yaml import YAML

from finetune_client.claims import Folders
from finetune_client.local_job import find_job, read_job
from finetune_client.manifest import read_documents
from finetune_operator.api.reasons import ENDED, WAITING, Explanation, Reason
from finetune_operator.api.schema import Finding
from finetune_operator.api.v1alpha1 import TERMINAL, ConditionType, FinetuneJob, FinetuneJobStatus, dump
from finetune_operator.constants import CONFIG_FILE
from finetune_operator.decide import decide
from finetune_operator.desired import naming
from finetune_operator.desired.config_map import build_config_map
from finetune_operator.desired.fetch import fetch_arguments
from finetune_operator.desired.sources import Source, What, sources
from finetune_operator.observed import Cluster, FetchPod, Observed, RayJob
from finetune_trainer.config.run import LOGS
from finetune_trainer.errors import ConfigError
from finetune_trainer.fetch.report import FetchReport
from finetune_trainer.output.answers import ANSWER_TOKENS, Sample, read_samples
from finetune_trainer.runtime.stop import STOPPED_EXIT_CODE, heeded
from finetune_trainer.tracking.progress import PROGRESS_FILE, read_progress
from finetune_trainer.tracking.streams import unfailing

SHOWN_SAMPLES = 2
"""How many prompts are printed with their answers."""

INDENT = "    "

OF_A_CLUSTER = frozenset({ConditionType.CLUSTER_READY, ConditionType.SUBMITTED, ConditionType.QUOTA_RESERVED})
"""Conditions about a Ray cluster, which is not there."""


def command(options: argparse.Namespace) -> int:
    """``finetune run`` with its options; see `run`."""
    return run(options.filename, dict(options.claim), options.claims_dir)


def run(filename: str, claims: Mapping[str, Path], claims_dir: Path) -> int:
    """Run a manifest; print the job as ``kubectl get -o yaml`` would, and the folder of the result.

    Returns:
        The exit code: 0 finished, 1 failed, 75 stopped by a signal; the same command goes on from there.

    Raises:
        ConfigError: the manifest is not a valid FinetuneJob; with every error.
    """
    with unfailing():
        return _run(filename, claims, claims_dir)


def _run(filename: str, claims: Mapping[str, Path], claims_dir: Path) -> int:
    manifest, job = load_job(filename)
    folders = Folders(job, claims, claims_dir)
    if unknown := folders.unknown():
        raise ConfigError(unknown)
    job = _advance(job, Observed(missing=folders.missing()))
    if job.status.fetch is not None:
        job = _after_fetch(job, folders)
        folders = Folders(job, claims, claims_dir)
    if job.status.attempt is None:
        _print(manifest, job)
        _print_failure(job)
        return 1
    job = _advance(job, Observed(cluster=_this_machine(job), ray_job=RayJob("RUNNING")))
    code = _train(job, folders)
    job = _finish(job, folders, code)
    _print(manifest, job)
    if code not in (0, STOPPED_EXIT_CODE):
        _print_failure(job)
    if code == 0:
        _print_answers(folders)
        sys.stdout.write(f"\nThe result is in {folders.output}\n")
    return code if code in (0, STOPPED_EXIT_CODE) else 1


def load_job(filename: str) -> tuple[Mapping[str, Any], FinetuneJob]:
    """Read a manifest as written, and as a job with the metadata that an API server would add.

    Raises:
        ConfigError: with the errors, each with file, line and path.
    """
    document = find_job(read_documents(filename), filename)
    return document.value, read_job(document, _not_here)


def _not_here(job: FinetuneJob) -> Iterator[Finding]:
    """What needs a cluster."""
    if job.spec.dataset and job.spec.dataset.config_map:
        yield Finding(("spec", "dataset", "configMap"), "there are no ConfigMaps here; use a claim and --claim")
    if job.spec.resume_from:
        yield Finding(("spec", "resumeFrom"), "there are no other jobs here; name a folder in General.resume_from_checkpoint")


def _after_fetch(job: FinetuneJob, folders: Folders) -> FinetuneJob:
    """Fetch what the job names by addresses, as a pod of a cluster does; the job as it is then."""
    dirs: dict[What, str] = {source.what: str(folders.kept(source)) for source in sources(job)}
    tokens = {
        f"FINETUNE_{source.what.upper()}_TOKEN": os.environ.get("HF_TOKEN", "") for source in sources(job) if _on_hub(source)
    }
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report"
        command = [sys.executable, "-m", "finetune_trainer.fetch", *fetch_arguments(job, dirs), "--report", str(report)]
        subprocess.run(command, env=tokens | os.environ, check=False)  # noqa: S603 - our own module, with an argument list
        found = FetchReport.model_validate_json(report.read_bytes()) if report.is_file() else FetchReport()
    if found.failure is not None:  # there is no operator that would try again
        found = found.model_copy(update={"failure": found.failure.model_copy(update={"retryable": False})})
    job = _advance(job, Observed(fetch=FetchPod("finetune_trainer.fetch", finished=True, report=found)))
    return job if job.status.phase in TERMINAL else _advance(job, Observed())


def _on_hub(source: Source) -> bool:
    return source.uri.startswith("hf://")


def _train(job: FinetuneJob, folders: Folders) -> int:
    folders.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / CONFIG_FILE
        config.write_text(build_config_map(job)["data"][CONFIG_FILE], encoding="utf-8")
        command = [sys.executable, "-m", "finetune_trainer", "--config_file", str(config)]
        command += ["--output_dir", str(folders.output), *folders.arguments()]
        # A group of its own: Ctrl-C in a terminal reaches a whole group, and the trainer would be sent two signals.
        trainer = subprocess.Popen(command, process_group=0)  # noqa: S603 - our own module, with an argument list
        return wait_for(trainer)


def wait_for(trainer: subprocess.Popen[bytes]) -> int:
    """Wait for the trainer while signals are passed on to it: the first one makes it stop, a second one ends it at once."""
    stopping = False

    def pass_on(number: int, frame: object) -> None:  # noqa: ARG001 - Python's signature
        nonlocal stopping
        stopping = True
        trainer.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in heeded()}
    try:
        code = trainer.wait()
    finally:
        if trainer.poll() is None:
            trainer.terminate()
        for number, handler in before.items():
            signal.signal(number, handler)
    # A trainer that was still being loaded has no handler yet, and nothing to save.
    return STOPPED_EXIT_CODE if stopping and code == -signal.SIGTERM else code


def _finish(job: FinetuneJob, folders: Folders, code: int) -> FinetuneJob:
    progress = read_progress(folders.output / "logs" / PROGRESS_FILE)
    state = RayJob("SUCCEEDED") if code == 0 else RayJob("FAILED", f"the trainer ended with exit code {code}")
    observed = Observed(cluster=_this_machine(job), ray_job=state, progress=progress)
    return _advance(job, observed)


def _this_machine(job: FinetuneJob) -> Cluster:
    workers = job.spec.config.training.num_training_workers
    return Cluster(
        name=naming.cluster_name(job, 1),
        uid="local",
        owner_uid=job.metadata.uid,
        deleting=False,
        suspended=False,
        head_ready=True,
        head_lost=False,
        head_ip="127.0.0.1",
        key_id=None,
        workers_ready=workers,
        workers_desired=workers,
        message="",
    )


def _advance(job: FinetuneJob, observed: Observed) -> FinetuneJob:
    return job.model_copy(update={"status": decide(job, observed, datetime.now(UTC)).status})


def _print(manifest: Mapping[str, Any], job: FinetuneJob) -> None:
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.width = 100
    metadata = dict(manifest["metadata"]) | {"namespace": job.metadata.namespace, "uid": job.metadata.uid}
    sys.stdout.write("\n")
    yaml.dump(dict(manifest) | {"metadata": metadata, "status": _local_status(job.status)}, sys.stdout)


def _print_failure(job: FinetuneJob) -> None:
    """Say on standard error why the run has failed, and what to do, in a line each."""
    status = job.status
    lines = [line for line in (status.message or "").splitlines() if line.strip()]
    sys.stderr.write(f"error: {status.reason}: {lines[0] if lines else ''}\n")
    remedy = (ENDED | WAITING).get(Reason(status.reason or Reason.TRAINING_FAILED), Explanation("", "")).remedy
    if status.reason == Reason.CLAIM_NOT_FOUND:
        remedy = "Name the folder that stands for the claim: --claim NAME=DIR"
    if remedy:
        sys.stderr.write(f"  -> {remedy}\n")


def _print_answers(folders: Folders) -> None:
    """Print answers from before and after training, and the command that asks the model."""
    samples = read_samples(folders.output / LOGS)[:SHOWN_SAMPLES]
    for sample in samples:
        prompt = "\n".join(words) if (words := _words(sample, folders)) else sample.prompt
        sys.stdout.write(f"\nPrompt ({sample.row}):\n{indent(prompt, INDENT)}\n")
        for title, answer in (("Before", sample.before), ("After", sample.after)):
            if answer is not None:
                sys.stdout.write(f"{title} training:\n{indent(answer.text.strip(), INDENT)}\n")
        sys.stdout.write(f"Expected:\n{indent(sample.expected.strip(), INDENT)}\n")
    words = (samples and _words(samples[0], folders)) or ["INSTRUCTION"]
    command = [sys.executable, "-m", "finetune_client.cli", "generate", f"--max-tokens={ANSWER_TOKENS}"]
    command += [f"--model-dir={folders.model}"] if folders.model else []
    command += [f"--input={words[1]}"] if len(words) > 1 else []
    command += ["--", str(folders.output), words[0]]
    sys.stdout.write(f"\nAsk the model, with these or other words:\n{INDENT}{shlex.join(command)}\n")


def _words(sample: Sample, folders: Folders) -> list[str]:
    """Return instruction and context of a prompt if its row is in a JSONL file, else nothing."""
    name, _, line = sample.row.rpartition(":")
    with suppress(OSError, ValueError, KeyError, TypeError):
        with ((folders.dataset or Path()) / name).open(encoding="utf-8") as file:
            row = json.loads(next(islice(file, int(line) - 1, None), ""))
        return [row["instruction"], *filter(None, [row.get("context")])]
    return []


def _local_status(status: FinetuneJobStatus) -> dict[str, Any]:
    """Remove the parts of the status about a Ray cluster, since none was created."""
    conditions = tuple(condition for condition in status.conditions if condition.type not in OF_A_CLUSTER)
    return dump(status.model_copy(update={"ray": None, "attempt_history": (), "conditions": conditions}))
