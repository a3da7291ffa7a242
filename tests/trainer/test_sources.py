"""Rows come from a JSONL file, from CSV and Parquet files, from folders, and from data sets of the hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from tests.support import fake_hub
from tests.support.trainer import sample_rows

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import sources
from finetune_trainer.errors import DatasetInvalid, DatasetNotFound

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

ROWS = [
    {"instruction": "Count.", "context": "", "response": "007"},
    {"instruction": "Stop.", "context": "Here", "response": "NA"},
]


def make_run(folder: Path, run_name: str | None = None, **dataset: Any) -> Run:
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": dataset})
    return Run(config=config, output_dir=folder / "out", dataset_dir=folder, run_name=run_name)


def found(folder: Path, **dataset: Any) -> dict[str, list[Any]]:
    """The sources of a run by their names, with their rows."""
    there = [source for source in sources.find_sources(make_run(folder, **dataset)) if source]
    return {source.name: [json.loads(line) for line in source.path.read_text().splitlines()] for source in there}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".csv":
        lines = [rows[0], *(row.values() for row in rows)]
        path.write_text("".join(",".join(line) + "\n" for line in lines))
    else:
        import pyarrow as pa
        from pyarrow import parquet

        parquet.write_table(pa.Table.from_pylist(rows), path)


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_file_of_a_table(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / f"rows.{suffix}", ROWS)
    name = f"rows.{suffix}"
    assert found(tmp_path, train_file=name) == {name: ROWS}
    assert found(tmp_path, train_file=name, validation_file=name) == {name: ROWS}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "jsonl", "json"])
def test_folder_with_splits(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "rows" / f"train.{suffix}", ROWS)
    assert found(tmp_path, train_file="rows") == {"rows[train]": ROWS}
    write(tmp_path / "rows" / f"validation.{suffix}", ROWS[:1])
    assert found(tmp_path, train_file="rows") == {"rows[train]": ROWS, "rows[validation]": ROWS[:1]}
    write(tmp_path / "data.jsonl", ROWS)
    assert found(tmp_path, train_file="data.jsonl", validation_file="rows") == {"data.jsonl": ROWS, "rows[validation]": ROWS[:1]}
    assert list(found(tmp_path, train_file="rows", validation_file="data.jsonl")) == ["rows[train]", "data.jsonl"]


def test_copy_is_made_once_for_a_run(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "train.jsonl", ROWS)
    run = make_run(tmp_path, "one", train_file="rows")
    first = sources.find_sources(run)[0].path
    first.write_text("marked")
    assert sources.find_sources(make_run(tmp_path, "one", train_file="rows"))[0].path.read_text() == "marked"
    assert sources.find_sources(make_run(tmp_path, "other", train_file="rows"))[0].path.read_text() != "marked"
    write(tmp_path / "rows" / "train.jsonl", ROWS[:1])
    assert len(sources.find_sources(run)[0].path.read_text().splitlines()) == 1


def test_broken_rows_of_a_folder_are_named_by_file(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "train.jsonl", [*ROWS, {"instruction": "a", "response": ""}])
    with pytest.raises(DatasetInvalid, match=r"^rows/train.jsonl:3: response is empty$"):
        sources.check(make_run(tmp_path, train_file="rows"))


def test_columns_that_are_not_ours(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "train.jsonl", [{"question": "a", "answer": "b"}])
    with pytest.raises(
        DatasetInvalid, match=r"rows/train.jsonl: the data has the columns question, answer; it needs instruction and response"
    ):
        found(tmp_path, train_file="rows")


def test_folder_without_rows_to_train_on(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "test.jsonl", ROWS)
    with pytest.raises(DatasetNotFound, match="rows: the data set has no split train; it has test"):
        found(tmp_path, train_file="rows")
    assert found(tmp_path, train_file="rows/test.jsonl", validation_file="rows") == {"rows/test.jsonl": ROWS, "rows[test]": ROWS}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("train.jsonl", "{", "rows/train.jsonl:1: the row is not JSON"),
        ("train.parquet", "no", "rows/train.parquet: cannot read the data: it is no complete Parquet file"),
        ("notes.xyz", "", "rows: cannot read the data: .*rows has no file .jsonl, .*; it has notes.xyz"),
    ],
)
def test_folder_that_cannot_be_read(tmp_path: Path, name: str, text: str, words: str) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / name).write_text(text)
    with pytest.raises(DatasetInvalid, match=words):
        found(tmp_path, train_file="rows")
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_data_set_that_is_neither_here_nor_on_the_hub(tmp_path: Path) -> None:
    message = f"owner/rows: there is no file or folder {tmp_path}/owner/rows, and the data set owner/rows cannot be loaded from"
    with pytest.raises(DatasetNotFound, match=message):
        found(tmp_path, train_file="owner/rows")


@pytest.mark.parametrize("name", ["rows", "rows.jsonl", "folder/rows.jsonl", "a/b/c"])
def test_name_of_a_file_is_not_looked_up_on_the_hub(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetNotFound, match=f"^{name}: cannot read the data file \\(looked for {tmp_path}/{name}\\)"):
        sources.check(make_run(tmp_path, train_file=name))


def test_texts_and_rows_are_trained_on_together(command: Command) -> None:
    command.write_rows({"text": "Blue is a colour."}, *sample_rows(6))
    outcome = command.run()
    assert outcome.code == 0, outcome.err


@pytest.mark.slow
def test_data_set_of_the_hub(command: Command, tmp_path: Path) -> None:
    rows = "".join(json.dumps(row) + "\n" for row in sample_rows(12)).encode()
    files = {"train.jsonl": rows, "validation.jsonl": rows, "README.md": b"# Rows\n"}
    command.change("Dataset", train_file="owner/rows").change("Training", max_train_steps=2)
    environment = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": ""}
    with fake_hub.serving("owner/rows", files, token="hf_secret") as hub:
        environment["HF_ENDPOINT"] = hub.address
        refused = command.run_apart(**environment)
        assert refused.code == 3
        assert "owner/rows cannot be loaded from the Hugging Face hub: it is gated; ask for access on its page" in refused.err
        trained = command.run_apart(**{**environment, "HF_TOKEN": "hf_secret"})
    assert trained.code == 0, trained.err
    assert trained.progress["result"]["evalLoss"] > 0
    assert not (command.output / ".tokens").exists()


FIND = """
import json, sys
from pathlib import Path
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import sources
config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": {"train_file": "owner/rows"}})
run = Run(config=config, output_dir=Path(sys.argv[1]), dataset_dir=Path(sys.argv[1]))
try:
    print(sources.find_sources(run)[0].path.read_text(), end="")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
"""
"""Finds a data set of the hub, whose address the library reads once for each process."""

HUB: dict[str, tuple[dict[str, bytes], str]] = {
    "text that looks like something else": (
        {"train.csv": b"instruction,response,text\nCount.,007,\n,,NA\n"},
        '{"instruction": "Count.", "response": "007", "text": ""}\n{"instruction": "", "response": "", "text": "NA"}\n',
    ),
    "no text": (
        {"train.jsonl": b'{"instruction": "a", "response": 7}\n'},
        "DatasetInvalid: owner/rows[train]:1: response must be text, not a number\n",
    ),
    "other columns": (
        {"train.jsonl": b'{"question": "a"}\n'},
        (
            "DatasetInvalid: owner/rows[train]: the data has the columns question; it needs instruction and response "
            "(and context, if there is one), or text\n"
        ),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", HUB)
def test_files_of_the_hub_are_read_as_text(tmp_path: Path, case: str) -> None:
    files, wanted = HUB[case]
    with fake_hub.serving("owner/rows", files) as hub:
        more = {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "0", "HF_TOKEN": "", "HF_ENDPOINT": hub.address}
        line = [sys.executable, "-c", FIND, str(tmp_path)]
        done = subprocess.run(line, capture_output=True, text=True, env=os.environ | more)
    assert done.stdout == wanted, done.stderr
