"""``finetune submit``: create jobs, from manifests or finetuning YAMLs of llm-on-ray; wait for them if asked to."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from finetune_client import submission
from finetune_client.client import FinetuneClient
from finetune_client.commands.common import Waiting, client_of, note, print_objects, say
from finetune_client.commands.copy import Bar
from finetune_client.commands.watch import timer, verdict
from finetune_client.errors import ClientError, ExistsError, NoLogError, UnreachableError
from finetune_client.files import expand
from finetune_client.job import Job
from finetune_client.kube.rest import Stop
from finetune_trainer.errors import ConfigError

Object = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Create the jobs; all of them are valid before the first one is created.

    Returns:
        The exit code: with --wait or --follow 1 when a job has not succeeded.

    Raises:
        ConfigError: a manifest is wrong; with every error.
        ClientError: there is a job of that name, or the cluster refuses or does not answer.
    """
    manifests = _read(options)
    client = client_of(options)
    if options.upload:
        _upload(client, manifests[0], options)
    jobs = [_create(client, manifest, options) for manifest in manifests]
    if options.output:
        print_objects(jobs, options.output)
    else:
        for job in jobs:
            say(f"{job} {'is valid (nothing was created)' if options.dry_run else 'created'}")
    sys.stdout.flush()
    if options.dry_run or not (options.wait or options.follow):
        return 0
    try:
        return max(_end(client, job, options) for job in jobs)
    except KeyboardInterrupt:
        names = " ".join(job.name for job in jobs)
        note(f"\n{names}: goes on in the cluster; `finetune watch` follows it, and `finetune cancel` ends it.")
        raise


def _read(options: argparse.Namespace) -> list[Object]:
    settings = _settings(options)
    found: list[Object] = []
    errors: list[str] = []
    for file in expand(options.filename, recursive=options.recursive):
        try:
            for raw, notes in submission.jobs_of_file(file, options):
                for line in notes:
                    note(line)
                found.append(submission.finish(raw, file, name=options.name, settings=settings))
        except ConfigError as error:
            errors += error.errors
    if errors:
        raise ConfigError(errors)
    if not found:
        raise ConfigError([f"{', '.join(options.filename)}: there is no FinetuneJob in it"])
    if len(found) > 1 and (options.name or options.upload):
        option = "--name" if options.name else "--upload"
        raise ClientError(f"{option} is for one job, and there are {len(found)}", "leave it out")
    return found


def _settings(options: argparse.Namespace) -> Object:
    settings = submission.parse_settings(options.set)
    if options.create and not options.upload:
        raise ClientError("--create makes the claim for --upload, which is not there", "as: --upload rows.jsonl --create 1Gi")
    return submission.with_rows(settings, options.upload) if options.upload else settings


def _upload(client: FinetuneClient, manifest: Object, options: argparse.Namespace) -> None:
    """Copy the rows of the job to its claim, unless it is only to be checked."""
    claim, _ = submission.place_of_rows(manifest)
    if options.dry_run:
        note(f"{options.upload} would be copied to the claim {claim} (nothing was copied)")
        return
    progress = Bar()
    with _naming(client, manifest):
        place = client.upload_rows(manifest, options.upload, create=options.create, progress=progress, say=note)
    progress.end()
    note(f"{options.upload} is copied to {place}")


def _create(client: FinetuneClient, manifest: Object, options: argparse.Namespace) -> Job:
    with _naming(client, manifest):
        return client.create(manifest, dry_run=options.dry_run)


@contextmanager
def _naming(client: FinetuneClient, manifest: Object) -> Iterator[None]:
    """Say what to do about a name that is taken."""
    try:
        yield
    except ExistsError as error:
        name = manifest["metadata"].get("name")
        hint = f"give this one another name (--name {name}-2), or see `finetune status {name}`"
        raise ExistsError(409, f"there is a finetunejob/{name} in namespace {client.namespace} already", hint) from error


def _end(client: FinetuneClient, job: Job, options: argparse.Namespace) -> int:
    """Wait for the end of a job, and tell what it waits for meanwhile; give its exit code."""
    started = time.monotonic()
    if options.follow:
        _follow(client, job, options.timeout)
    left = None if options.timeout is None else max(0.0, options.timeout - (time.monotonic() - started))
    tell = (lambda _: None) if options.follow else Waiting()

    def until(now: Job) -> bool:
        tell(now)
        return now.has_ended

    return verdict(client.wait(job.name, timeout=left, until=until))


def _follow(client: FinetuneClient, job: Job, seconds: float | None) -> None:
    """Print the log as it comes, for this time at most."""
    stop = Stop()
    end = timer(seconds, stop)
    try:
        for text in client.logs(job.name, follow=True, stop=stop, waiting=Waiting(), say=note):
            sys.stdout.write(text)
            sys.stdout.flush()
    except (NoLogError, UnreachableError) as error:
        note(f"{error.message}: {error.hint}")
    finally:
        end.cancel()
