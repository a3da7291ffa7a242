"""Fetching one file: it arrives whole and as it was meant, whatever the other side does, or it is said why not."""

from __future__ import annotations

import hashlib
import json
import os
import random
from pathlib import Path
from typing import Any

import pytest
from tests.support.file_server import Answer, FileServer, Request, serving_files

from finetune_trainer.fetch import place
from finetune_trainer.fetch.__main__ import main, parser, run
from finetune_trainer.fetch.download import TRIES
from finetune_trainer.fetch.meter import Meter
from finetune_trainer.fetch.place import MARKER, PARTS
from finetune_trainer.fetch.report import FetchReport

DATA = random.Random(7).randbytes(3 * 2**20)
SHA256 = hashlib.sha256(DATA).hexdigest()


class Fetcher:
    """Runs the program in this process; its pauses are kept and not waited for."""

    def __init__(self, folder: Path, server: FileServer) -> None:
        self.folder, self.server = folder, server
        self.pauses: list[float] = []
        self.meter = Meter()

    def __call__(self, *more: str, owner: str = "job-1", path: str = "/rows.jsonl") -> FetchReport:
        arguments = ["--owner", owner, "--report", "-", "--dataset", self.server.address + path, "--train_file", "train.jsonl"]
        options = parser().parse_args([*arguments, "--dataset_dir", str(self.folder), *more])
        return run(options, self.meter, self.pauses.append)

    def content(self, report: FetchReport) -> bytes:
        assert report.dataset is not None, report.failure
        return (self.folder / report.dataset.version / "train.jsonl").read_bytes()


pytestmark = pytest.mark.sampled(8)


@pytest.fixture
def fetcher(tmp_path: Path) -> Any:
    with serving_files(**{"rows.jsonl": DATA}) as server:
        yield Fetcher(tmp_path, server)


def refused(report: FetchReport) -> tuple[str, bool]:
    assert report.failure is not None
    return report.failure.reason, report.failure.retryable


def test_a_file_gets_the_name_that_the_job_gives_it_and_the_report_says_what_was_fetched(fetcher: Fetcher) -> None:
    report = fetcher()
    assert fetcher.content(report) == DATA
    assert report.dataset is not None
    assert (report.dataset.files, report.dataset.size_bytes) == (1, len(DATA))
    assert (fetcher.meter.progress().bytes, fetcher.meter.progress().total_bytes) == (len(DATA), len(DATA))
    assert not (fetcher.folder / report.dataset.version / PARTS).exists()


@pytest.mark.parametrize("seed", range(10))
def test_a_connection_that_breaks_at_any_place_is_taken_up_there(fetcher: Fetcher, seed: int) -> None:
    chance = random.Random(seed)
    fetcher.server.cuts = [chance.randrange(len(DATA)) for _ in range(chance.randrange(1, 4))]
    assert fetcher.content(fetcher()) == DATA
    asked = [request.range for request in fetcher.server.bodies()]
    assert all(word.startswith("bytes=") for word in asked[1:])
    assert all(request.headers["if-range"] for request in fetcher.server.bodies()[1:])


def test_a_killed_fetch_goes_on_in_the_next_pod_of_the_job(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000] + [0] * TRIES
    assert refused(fetcher()) == ("FetchFailed", True)
    fetcher.server.cuts, before = [], len(fetcher.server.requests)
    assert fetcher.content(fetcher()) == DATA
    (request,) = [item for item in fetcher.server.requests[before:] if item.range != "bytes=0-0"]
    assert request.range == "bytes=1000000-"


def test_a_second_job_fetches_nothing(fetcher: Fetcher) -> None:
    first = fetcher()
    second = fetcher(owner="job-2")
    assert first.dataset == second.dataset
    assert len(fetcher.server.bodies()) == 1


def test_a_file_that_was_lost_or_shortened_on_the_claim_is_fetched_again(fetcher: Fetcher) -> None:
    report = fetcher()
    assert report.dataset is not None
    path = fetcher.folder / report.dataset.version / "train.jsonl"
    path.write_bytes(DATA[:10])
    assert fetcher.content(fetcher(owner="job-2")) == DATA
    path.unlink()
    assert fetcher.content(fetcher(owner="job-3")) == DATA


def test_another_content_at_the_same_address_is_another_version_and_the_first_one_stays(fetcher: Fetcher) -> None:
    first = fetcher()
    fetcher.server.files["/rows.jsonl"] = b"other rows"
    second = fetcher(owner="job-2")
    assert (fetcher.content(first), fetcher.content(second)) == (DATA, b"other rows")


def test_a_file_that_changes_while_it_is_fetched_is_fetched_anew_and_never_mixed(fetcher: Fetcher) -> None:
    other = DATA[::-1]
    fetcher.server.cuts = [1_000_000]

    def change(request: Request) -> None:
        if request.range.startswith("bytes=1000000"):
            fetcher.server.files["/rows.jsonl"] = other

    fetcher.server.answer = change
    assert fetcher.content(fetcher()) == other


def test_a_server_without_ranges_is_asked_for_the_whole_file_again(fetcher: Fetcher) -> None:
    fetcher.server.ranges = False
    fetcher.server.cuts = [len(DATA), 1_000_000]
    assert fetcher.content(fetcher()) == DATA


@pytest.mark.parametrize("length", [len(DATA) - 1000, len(DATA) + 1000])
def test_a_length_that_lies_ends_in_a_failure_and_not_in_a_file(fetcher: Fetcher, length: int) -> None:
    fetcher.server.ranges = False
    fetcher.server.headers = {"Content-Length": str(length)}
    if length < len(DATA):  # the protocol ends there: nothing but a digest can tell that more would come
        assert refused(fetcher("--dataset_sha256", SHA256)) == ("ChecksumMismatch", False)
    else:
        assert refused(fetcher()) == ("FetchFailed", True)
    assert not list(fetcher.folder.rglob("train.jsonl"))


def test_a_part_that_is_not_the_one_asked_for_is_thrown_away(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000]
    fetcher.server.headers = {"Content-Range": f"bytes 5-{len(DATA) - 1}/{len(DATA)}"}
    fetcher.server.answer = lambda request: None if len(fetcher.server.requests) < 3 else fetcher.server.headers.clear()
    assert fetcher.content(fetcher()) == DATA


def test_a_wrong_checksum_is_told_and_the_file_not_kept(fetcher: Fetcher) -> None:
    report = fetcher("--dataset_sha256", "0" * 64)
    assert refused(report) == ("ChecksumMismatch", False)
    assert report.failure is not None
    assert "0" * 64 in report.failure.message
    assert not [path for path in fetcher.folder.rglob("*") if path.is_file() and path.stat().st_size]


def test_a_right_checksum_is_enough_for_a_file_whose_etag_changes_with_each_request(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000]
    fetcher.server.headers = {"ETag": ""}
    assert fetcher.content(fetcher("--dataset_sha256", SHA256)) == DATA


def test_a_beginning_of_another_file_does_not_spoil_what_the_checksum_fits(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000] + [0] * TRIES
    fetcher("--dataset_sha256", SHA256)
    (part,) = fetcher.folder.rglob("*.part")
    part.write_bytes(b"x" * 1_000_000)
    fetcher.server.cuts = []
    assert fetcher.content(fetcher("--dataset_sha256", SHA256)) == DATA


@pytest.mark.parametrize(
    ("status", "reason", "retryable"),
    [
        (401, "DatasetAccessDenied", False),
        (403, "DatasetAccessDenied", False),
        (404, "DatasetNotFound", False),
        (410, "DatasetNotFound", False),
        (400, "FetchFailed", False),
        (429, "FetchFailed", True),
        (500, "FetchFailed", True),
        (503, "FetchFailed", True),
    ],
)
def test_an_answer_without_the_file_is_told_by_its_kind(fetcher: Fetcher, status: int, reason: str, retryable: bool) -> None:
    fetcher.server.answer = lambda _: Answer(status)
    report = fetcher(path="/rows.jsonl?signature=secret")
    assert refused(report) == (reason, retryable)
    assert report.failure is not None
    assert f"HTTP {status}" in report.failure.message
    assert "secret" not in report.failure.message
    assert len(fetcher.server.requests) == (TRIES if retryable else 1)


def test_a_server_that_is_busy_is_left_alone_as_long_as_it_asks(fetcher: Fetcher) -> None:
    fetcher.server.answer = lambda _: Answer(429, {"Retry-After": "7"}) if len(fetcher.server.requests) < 3 else None
    assert fetcher.content(fetcher()) == DATA
    assert fetcher.pauses == [7, 7]


def test_redirects_are_followed_but_not_for_ever_and_not_from_https_to_http(fetcher: Fetcher) -> None:
    fetcher.server.answer = lambda request: Answer(302, {"Location": "/rows.jsonl"}) if request.path == "/moved" else None
    assert fetcher.content(fetcher(path="/moved")) == DATA
    fetcher.server.answer = lambda request: Answer(302, {"Location": request.path})
    assert refused(fetcher(path="/loop")) == ("FetchFailed", False)


def test_a_server_that_gives_a_few_bytes_at_a_time_is_not_tried_for_ever(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [100] * 1000
    assert refused(fetcher()) == ("FetchFailed", True)
    assert len(fetcher.pauses) < 2 * TRIES


def test_an_encoded_answer_is_refused(fetcher: Fetcher) -> None:
    fetcher.server.headers = {"Content-Encoding": "gzip"}
    assert refused(fetcher()) == ("FetchFailed", False)


def test_jobs_that_fetch_the_same_at_once_have_parts_of_their_own(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000] + [0] * TRIES
    fetcher(owner="job-1")
    (theirs,) = fetcher.folder.rglob("*.part")
    fetcher.server.cuts = []
    assert fetcher.content(fetcher(owner="job-2")) == DATA
    assert theirs.stat().st_size == 1_000_000
    assert fetcher.content(fetcher(owner="job-1")) == DATA


def test_what_a_job_that_is_gone_has_left_is_taken_over(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000] + [0] * TRIES
    fetcher(owner="job-1")
    (theirs,) = fetcher.folder.rglob("*.part")
    long_ago = theirs.stat().st_mtime - place.ABANDONED_SECONDS - 1
    os.utime(theirs, (long_ago, long_ago))
    fetcher.server.cuts = []
    assert fetcher.content(fetcher(owner="job-2")) == DATA
    assert fetcher.server.bodies()[-1].range == "bytes=1000000-"


def test_the_marker_is_the_last_thing_that_is_written(fetcher: Fetcher) -> None:
    fetcher.server.cuts = [1_000_000] + [0] * TRIES
    fetcher()
    assert not list(fetcher.folder.rglob(MARKER))
    report = fetcher()
    assert report.dataset is not None
    assert json.loads((fetcher.folder / report.dataset.version / MARKER).read_bytes())["files"] == {"train.jsonl": len(DATA)}


def test_the_program_writes_its_report_and_an_exit_code(fetcher: Fetcher, tmp_path: Path) -> None:
    arguments = ["--owner", "job", "--report", str(tmp_path / "report"), "--train_file", "train.jsonl"]
    arguments += ["--dataset_dir", str(tmp_path / "claim"), "--dataset"]
    assert main([*arguments, f"{fetcher.server.address}/rows.jsonl"]) == 0
    assert FetchReport.model_validate_json((tmp_path / "report").read_bytes()).failure is None
    assert main([*arguments, f"{fetcher.server.address}/nothing"]) == 1
    failed = FetchReport.model_validate_json((tmp_path / "report").read_bytes())
    assert refused(failed) == ("DatasetNotFound", False)
