"""``python -m finetune_trainer.fetch``: fetch rows and a base model into folders, once.

It is all that the pod does that fetches for a FinetuneJob. Tokens are in FINETUNE_DATASET_TOKEN and FINETUNE_MODEL_TOKEN.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.fetch.download import PAUSE_SECONDS, TRIES, Downloads, Sleep
from finetune_trainer.fetch.errors import Changed, FetchError, Temporary, What
from finetune_trainer.fetch.listing import Listing, Names
from finetune_trainer.fetch.meter import Meter, serve
from finetune_trainer.fetch.place import Place
from finetune_trainer.fetch.report import MESSAGE_LIMIT, Fetched, FetchFailure, FetchReport
from finetune_trainer.fetch.sources import Wanted
from finetune_trainer.fetch.web import Web, redacted
from finetune_trainer.redaction import redact

if TYPE_CHECKING:
    from collections.abc import Sequence

FAILED_EXIT_CODE = 1

VERSIONS_TRIED = 3
"""How often a fetch begins again with a new version when the files have changed meanwhile."""


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m finetune_trainer.fetch", description=__doc__)
    option = parser.add_argument
    option("--owner", required=True, metavar="UID", help="whose unfinished files these are")
    option("--report", required=True, metavar="FILE", type=Path, help="file for the report of the end")
    option("--port", metavar="PORT", type=int, help="port that tells the progress")
    option("--dataset", metavar="URI", help="address of the rows")
    option("--dataset_dir", metavar="DIR", type=Path, help="folder for the versions of the rows")
    option("--dataset_sha256", metavar="HEX", help="SHA-256 of the only file")
    option("--train_file", metavar="FILE", help="file or folder with the rows")
    option("--validation_file", metavar="FILE", help="file or folder with the rows for evaluation")
    option("--model", metavar="URI", help="address of the model")
    option("--model_dir", metavar="DIR", type=Path, help="folder for the versions of the model")
    return parser


class Fetch:
    """One run of the program."""

    def __init__(self, owner: str, meter: Meter, sleep: Sleep = time.sleep) -> None:
        self._owner = owner
        self._meter = meter
        self._sleep = sleep

    def fetch(self, wanted: Wanted, folder: Path) -> Fetched:
        """Have all files of an address in a folder of their version.

        Raises:
            FetchError: it cannot be done.
        """
        web = Web(wanted.what)
        try:
            for _ in range(VERSIONS_TRIED):
                listing = self._list(wanted, web)
                try:
                    return self._fetch_version(listing, folder, web)
                except Changed:
                    self._meter.tell(f"{redacted(wanted.uri)} has changed")
        finally:
            web.close()
        raise FetchError("FetchFailed", f"{redacted(wanted.uri)}: it changes again and again while it is fetched", retryable=True)

    def _list(self, wanted: Wanted, web: Web) -> Listing:
        shortest, longest = PAUSE_SECONDS
        for failures in range(TRIES):
            try:
                return wanted.list_files(web, self._owner)
            except Temporary as error:
                problem = error
                self._sleep(min(error.after if error.after is not None else shortest * 2**failures, longest))
        raise FetchError("FetchFailed", f"{problem}; {TRIES} tries", retryable=True)

    def _fetch_version(self, listing: Listing, folder: Path, web: Web) -> Fetched:
        place = Place(folder, listing.version, self._owner)
        sizes = place.finished()
        if sizes is None:
            for file in listing.files:
                self._meter.expect(file.name, file.size)
            downloads = Downloads(web, place, self._meter, self._sleep)
            for file in listing.files:
                downloads.fetch(file)
            sizes = place.finish(listing.origin, [file.name for file in listing.files])
        for name, size in sizes.items():
            self._meter.expect(name, size)
            self._meter.at(name, size)
        return Fetched(version=listing.version, origin=listing.origin[:300], files=len(sizes), size_bytes=sum(sizes.values()))


def wanted_of(options: argparse.Namespace) -> list[tuple[Wanted, Path]]:
    """What the command line asks for."""
    found: list[tuple[Wanted, Path]] = []
    if options.dataset:
        names = Names(options.train_file or ".", options.validation_file)
        token = os.environ.get("FINETUNE_DATASET_TOKEN")
        found.append((Wanted("dataset", options.dataset, options.dataset_sha256, token, names), options.dataset_dir))
    if options.model:
        found.append((Wanted("model", options.model, token=os.environ.get("FINETUNE_MODEL_TOKEN")), options.model_dir))
    return found


def run(options: argparse.Namespace, meter: Meter, sleep: Sleep = time.sleep) -> FetchReport:
    """Fetch everything; the first failure ends it."""
    report = FetchReport()
    fetch = Fetch(options.owner, meter, sleep)
    what: What = "dataset"
    try:
        for wanted, folder in wanted_of(options):
            what = wanted.what
            report = report.model_copy(update={what: fetch.fetch(wanted, folder)})
    except FetchError as error:
        return report.model_copy(update={"failure": _failure(error)})
    except OSError as error:
        words = f"the folder for the {what} cannot be used: {error.strerror or error}"
        return report.model_copy(update={"failure": _failure(FetchError("FetchFailed", words, retryable=True))})
    return report


def _failure(error: FetchError) -> FetchFailure:
    return FetchFailure(reason=error.reason, message=redact(error.message)[:MESSAGE_LIMIT], retryable=error.retryable)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code."""
    options = parser().parse_args(arguments)
    # The first process of a container does not end by a signal that it does not handle.
    signal.signal(signal.SIGTERM, _end)
    meter = Meter()
    if options.port is not None:
        serve(meter, options.port)
    report = run(options, meter)
    options.report.write_text(report.model_dump_json(by_alias=True, exclude_none=True), encoding="utf-8")
    if report.failure is not None:
        sys.stderr.write(f"error: {report.failure.reason}: {report.failure.message}\n")
        return FAILED_EXIT_CODE
    meter.tell("all files are there")
    return 0


def _end(number: int, _: Any) -> None:
    sys.exit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
