"""``finetune list``: the jobs as a table, or as objects."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from finetune_client.commands.common import age, client_of, duration, note, number, plain, print_objects, say, table
from finetune_client.errors import ClientError
from finetune_client.job import Job

COLUMNS = ("NAME", "PHASE", "PROGRESS", "LOSS", "WORKERS", "ATTEMPT", "AGE")
WIDE = ("ETA", "REASON", "OUTPUT")


def run(options: argparse.Namespace) -> int:
    """Print the jobs.

    Raises:
        ClientError: the cluster refuses or does not answer, or a job that is named is not there.
    """
    client = client_of(options)
    if options.jobs and options.all_namespaces:
        raise ClientError("names and --all-namespaces exclude each other", "name a namespace with -n")
    found = [client.get(name) for name in options.jobs] or client.list(all_namespaces=options.all_namespaces)
    if options.output in {"json", "yaml", "name"}:
        print_objects(found, options.output, as_list=not options.jobs)
        return 0
    if not found:
        where = "in the cluster" if options.all_namespaces else f"in namespace {client.namespace}"
        note(f"There are no FinetuneJobs {where}. `finetune submit -f FILE` creates one.")
        return 0
    for line in lines(found, namespaces=options.all_namespaces, wide=options.output == "wide"):
        say(line)
    return 0


def lines(jobs: Sequence[Job], *, namespaces: bool = False, wide: bool = False) -> list[str]:
    """The table."""
    head = ["NAMESPACE"] * namespaces + list(COLUMNS) + list(WIDE) * wide
    return table([head, *(row(job, namespaces=namespaces, wide=wide) for job in jobs)])


def fetched(job: Job) -> str:
    """How much has been fetched of what the job names by addresses, as long as it has no attempt."""
    display = job.read("status", "fetch", "display") if job.read("status", "attempt") is None else None
    return f"fetch {display}" if display else ""


def row(job: Job, *, namespaces: bool = False, wide: bool = False) -> list[str]:
    """The cells of a job."""
    cells = [job.namespace] * namespaces
    cells += [
        job.name,
        job.phase,
        job.read("status", "progress", "display") or fetched(job),
        number(job.number("status", "progress", "loss")),
    ]
    cells += [job.read("status", "ray", "workers") or "", job.read("status", "attempt") or "", age(job.created)]
    if wide:
        left = None if job.has_ended else job.number("status", "progress", "etaSeconds")
        claim = job.read("status", "output", "persistentVolumeClaim")
        cells += [duration(left) if left is not None else "", job.reason, claim or ""]
    return [plain(cell) for cell in cells]
