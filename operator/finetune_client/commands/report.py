"""``finetune report``: the report of a job; ``finetune compare``: several runs side by side in one."""

from __future__ import annotations

import argparse
import tempfile
import webbrowser
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from finetune_client.commands.common import client_of, note, say
from finetune_client.errors import ClientError, JobEndedError
from finetune_client.home import at_home

if TYPE_CHECKING:
    from finetune_client.client import FinetuneClient
    from finetune_client.job import Job
    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.output.comparison import Compared

LOGS = "logs"


def report(options: argparse.Namespace) -> int:
    """Copy the report here, and print where it is.

    Raises:
        ClientError: there is no such job or report, or it cannot be copied.
    """
    folder = options.folder or f"{options.job}-report"
    return _show(client_of(options).report(options.job, folder, image=options.image, say=note), options)


def compare(options: argparse.Namespace) -> int:
    """Write the comparison, and print where it is.

    Raises:
        ClientError: there are too many runs, one is not there, or nothing can be drawn here.
    """
    if find_spec("matplotlib") is None:
        raise ClientError("curves are drawn by matplotlib, which is not installed here", "pip install matplotlib")
    from finetune_trainer.output import comparison

    if len(options.runs) > comparison.MOST_RUNS:
        hint = "leave some out, or use TensorBoard (General.report_to)"
        raise ClientError(f"{comparison.MOST_RUNS} runs can be compared at most, and these are {len(options.runs)}", hint)
    with tempfile.TemporaryDirectory() as place:
        runs = list(_runs(options, Path(place)))
    page = at_home(options.output)
    page.write_text(comparison.compare(runs), encoding="utf-8")
    return _show(page, options)


def _show(page: Path, options: argparse.Namespace) -> int:
    say(str(page))
    if options.open and not webbrowser.open(page.absolute().as_uri()):
        note("there is no browser here; open the file in one")
    return 0


def _runs(options: argparse.Namespace, place: Path) -> Iterator[Compared]:
    from finetune_trainer.output.comparison import read_run

    client: FinetuneClient | None = None
    for number, name in enumerate(options.runs):
        config, logs = None, at_home(name) / LOGS
        if not logs.is_dir():
            if Path(name).is_dir():
                raise ClientError(f"{name} is no output folder of a run: it has no folder {LOGS}", "name its folder, or a job")
            client = client or client_of(options)
            job = client.get(name)
            logs, config = place / str(number) / LOGS, _config_of(job)
            _copy(client, job, logs.parent, options.image)
        run = read_run(logs, name, config)
        if not run.records:
            raise ClientError(
                f"{name} has no step on record", f"its {LOGS}/metrics.jsonl has the curves, and is missing or empty"
            )
        yield run


def _copy(client: FinetuneClient, job: Job, folder: Path, image: str | None) -> None:
    from finetune_client.transfer.report import RECORDS, copy

    if not copy(client, job, RECORDS, folder, image, note):
        raise JobEndedError(f"{job} has nothing on record yet ({job.state})", f"`finetune watch {job.name}` follows it")


def _config_of(job: Job) -> TrainerConfig | None:
    try:
        return job.spec.config
    except ValueError:  # it is of another version
        return None
