"""Rows are tokenised once, into a cache on disk, which every rank maps."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
import os
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.support.trainer import make_tokenizer, sample_rows

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import jsonl, process_pool, tokenize
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.sources import Source
from finetune_trainer.data.tokenize_options import TokenizeOptions
from finetune_trainer.errors import DatasetInvalid, OutOfMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.trainer import Command

    from finetune_trainer.data.examples import Examples
    from finetune_trainer.data.tokenize import Tokens

ARRAYS = ("tokens", "starts", "first", "last", "lines")


def make_run(folder: Path, **dataset: Any) -> Run:
    config = {"General": {"base_model": "m"}, "Dataset": {"train_file": "data.jsonl", **dataset}}
    return Run(config=TrainerConfig.model_validate(config), output_dir=folder / "out", dataset_dir=folder)


def write_rows(folder: Path, *lines: Any) -> None:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    (folder / "data.jsonl").write_text("\n".join(texts) + "\n")


def tokenize_rows(run: Run, tokenizer: Any, **work: Any) -> Tokens:
    return tokenize.tokenize_files(run, tokenizer, TokenizeOptions(**work))[0]


def tokens_of(run: Run, tokenizer: Any, **work: Any) -> Examples:
    return tokenize.open_tokens(run, tokenize_rows(run, tokenizer, **work))


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the trainer logs."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("finetune_trainer")
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield messages
    log.removeHandler(handler)
    log.setLevel(level)


@pytest.fixture
def wanted(tmp_path: Path, tokenizer: Any) -> Examples:
    """The sample rows in memory; the same lie in the file, with blank lines."""
    lines = [line for row in sample_rows() for line in ("", row)]
    write_rows(tmp_path, *lines)
    listed = [Row(**row, line=2 * number) for number, row in enumerate(sample_rows(), start=1)]
    return encode_rows(listed, tokenizer, Dataset(train_file="f"), "data.jsonl")


def assert_same(made: Examples, wanted: Examples) -> None:
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(made, array), getattr(wanted, array), array)
    assert made.highest == wanted.highest
    assert made.place(3) == wanted.place(3) == "data.jsonl:8"


def test_tokens_on_disk_are_those_in_memory(tmp_path: Path, tokenizer: Any, wanted: Examples) -> None:
    made = tokens_of(make_run(tmp_path), tokenizer)
    assert_same(made, wanted)
    assert isinstance(made.tokens, np.memmap)


def test_pieces_make_no_difference(tmp_path: Path, tokenizer: Any, wanted: Examples) -> None:
    whole = tokens_of(make_run(tmp_path), tokenizer).digest
    assert len(list(jsonl.pieces(tmp_path / "data.jsonl", "", 300))) > 5
    made = tokens_of(dataclasses.replace(make_run(tmp_path), output_dir=tmp_path / "other"), tokenizer, piece_bytes=300)
    assert_same(made, wanted)
    assert made.digest == whole


def files_of(run: Run) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in run.tokens.rglob("*")}


def test_tokens_that_are_there_are_used(tmp_path: Path, tokenizer: Any, wanted: Examples) -> None:
    run = make_run(tmp_path)
    assert_same(tokens_of(run, tokenizer), wanted)
    before = files_of(run)
    assert_same(tokens_of(run, make_tokenizer()), wanted)
    assert files_of(run) == before


BREAK: dict[str, Callable[[Path], Any]] = {
    "cut off": lambda folder: os.truncate(folder / "tokens", 100),
    "altered": lambda folder: (folder / "last").write_bytes(bytes(8 * len(sample_rows()))),
    "lost": lambda folder: (folder / "lines").unlink(),
    "not complete": lambda folder: (folder / "complete.json").unlink(),
    "not JSON": lambda folder: (folder / "complete.json").write_text("{"),
    "of another release": lambda folder: (folder / "complete.json").write_text('{"version": 2}'),
}


@pytest.mark.parametrize("harm", BREAK.values(), ids=BREAK)
def test_broken_caches_are_written_again(tmp_path: Path, tokenizer: Any, wanted: Examples, harm: Callable[[Path], Any]) -> None:
    run = make_run(tmp_path)
    harm(run.tokens / tokenize_rows(run, tokenizer).key)
    assert_same(tokens_of(run, tokenizer), wanted)


def test_what_tokens_depend_on_makes_others(tmp_path: Path, tokenizer: Any) -> None:
    keys = []

    def note(made: Any = tokenizer, **dataset: Any) -> None:
        run = make_run(tmp_path, **dataset)
        keys.append(tokenize_rows(run, made).key)
        assert [path.name for path in run.tokens.iterdir()] == [keys[-1]]

    write_rows(tmp_path, *sample_rows(3))
    note()
    note(max_length=256)
    note(mask_input=False)
    note(make_tokenizer("</s>"))
    write_rows(tmp_path, *sample_rows(4))
    note()
    assert len(set(keys)) == len(keys)
    note(shuffle=False, group=False, padding_side="left", validation_split_percentage=50)
    assert keys[-1] == keys[-2]


def test_rows_that_are_too_long_are_listed(tmp_path: Path, tokenizer: Any) -> None:
    write_rows(tmp_path, *[{"instruction": "a", "response": "b " * (60 if number > 1 else 1)} for number in range(10)])
    run = make_run(tmp_path, truncation=False, max_length=140)
    with pytest.raises(DatasetInvalid) as caught:
        tokenize_rows(run, tokenizer, piece_bytes=300)
    lines = str(caught.value).splitlines()
    assert [line.split(":")[1] for line in lines] == ["3", "4", "5", "6", "7", " and 3 more broken rows, 8 in all"]
    assert "more than Dataset.max_length 140, and truncation is off" in lines[0]
    assert not list(run.tokens.iterdir())


def test_cuts_are_logged_every_time(tmp_path: Path, tokenizer: Any, logged: list[str]) -> None:
    short, long = {"instruction": "a", "response": "b"}, {"instruction": "a", "response": "b " * 90}
    write_rows(tmp_path, short, long, {"instruction": "c " * 90, "response": "d"}, *[long] * 5)
    run = make_run(tmp_path, max_length=180, max_source_length=130)
    for _ in range(2):
        logged.clear()
        tokenize_rows(run, tokenizer)
        prompts, responses = logged
        assert prompts == (
            "data.jsonl: 1 of 8 prompts (12.5 %) were cut to fit, in lines 3; raise Dataset.max_source_length (now 130)"
        )
        assert responses == (
            "data.jsonl: 6 of 8 responses (75.0 %) were cut to fit, in lines 2, 4, 5, 6, 7, …; raise Dataset.max_length (now 180)"
        )


@pytest.mark.slow
def test_processes_make_no_difference(tmp_path: Path, tokenizer: Any, wanted: Examples) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    assert_same(tokens_of(make_run(tmp_path), tokenizer, processes=2, small_bytes=0, piece_bytes=300), wanted)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime > before + 0.2, "they have imported numpy at least"


@pytest.mark.slow
def test_process_that_is_killed() -> None:
    with pytest.raises(OutOfMemory, match=r"lower Dataset.preprocessing_num_workers \(now 1\)"):
        list(process_pool.in_processes(os._exit, iter([9]), 1))  # type: ignore[arg-type]


def test_processes_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ADDRESS", "RAY_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    assert tokenize.count_processes(make_run(tmp_path), available=6.5) == 6
    assert tokenize.count_processes(make_run(tmp_path), available=0.5) == 1
    assert tokenize.count_processes(make_run(tmp_path, preprocessing_num_workers=9), available=6.5) == 9
    monkeypatch.setenv("RAY_JOB_ID", "1")
    assert tokenize.count_processes(make_run(tmp_path), available=6.5) == 1
    assert tokenize.count_processes(make_run(tmp_path), available=6.5, workers_here=2) == 2


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_of_long_tokenising_is_logged(
    tmp_path: Path, tokenizer: Any, logged: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_rows(tmp_path, *sample_rows())
    tokenize_rows(make_run(tmp_path), tokenizer, piece_bytes=300, quiet_seconds=60)
    assert not logged
    at_once: dict[str, Any] = {"piece_bytes": 300, "quiet_seconds": 0, "line_seconds": 0}
    tokenize_rows(make_run(tmp_path, max_length=256), tokenizer, **at_once)
    assert len(logged) > 5
    assert logged[-1].startswith("tokenising data.jsonl: 100 %, 24 rows, ")
    monkeypatch.setenv("COLUMNS", "80")
    with contextlib.redirect_stdout(Terminal()) as terminal:
        tokenize_rows(make_run(tmp_path, max_length=300), tokenizer, **at_once)
    assert "tokenising data.jsonl: " in terminal.getvalue()


def test_tokens_stay_until_the_result_is_there(command: Command) -> None:
    folder = command.output / ".tokens"
    command.train_until(1, run_name="r")
    assert len(list(folder.iterdir())) == 1
    outcome = command.run("--run_name", "r")
    assert outcome.code == 0, outcome.err
    assert not folder.exists()


def test_rows_are_checked_piece_by_piece(tmp_path: Path) -> None:
    good = {"instruction": "a", "response": "b"}
    write_rows(tmp_path, good, "", "{}", good, "[]", {"text": " "}, good)
    with pytest.raises(DatasetInvalid) as caught:
        jsonl.check_rows(tmp_path / "data.jsonl", "data.jsonl", piece_bytes=40)
    assert str(caught.value).splitlines() == [
        "data.jsonl:3: instruction is missing",
        "data.jsonl:5: the row must be an object with instruction and response, or with text",
        "data.jsonl:6: text is empty",
    ]


def test_piece_is_read_as_it_was_cut(tmp_path: Path) -> None:
    write_rows(tmp_path, {"text": "one"}, {"text": "two"})
    source = Source(tmp_path / "data.jsonl", "data.jsonl")
    (piece,) = jsonl.pieces(source.path, source.name)
    assert [row.text for row in jsonl.read_piece(source.path, source.name, piece)[0]] == ["one", "two"]
