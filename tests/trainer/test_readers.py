"""Data as people have it: every kind of file is read as what it is, or refused with file, line and column."""

from __future__ import annotations

import bz2
import datetime as dt
import decimal
import gzip
import json
import logging
import lzma
from typing import TYPE_CHECKING, Any

import pytest

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data import sources
from finetune_trainer.data.folders import splits_of
from finetune_trainer.data.readers import read_rows
from finetune_trainer.errors import ConfigError, DatasetInvalid, DatasetNotFound

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ROWS = [{"instruction": f"Question {number}", "response": "[yes], {no}"} for number in range(3)]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def make_run(folder: Path, name: str, output: str = "out") -> Run:
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": {"train_file": name}})
    return Run(config=config, output_dir=folder / output, dataset_dir=folder)


def found(folder: Path, name: str, output: str = "out") -> list[Any]:
    """The rows to train on; they have passed the checks before a run."""
    run = make_run(folder, name, output)
    sources.check(run)
    return [json.loads(line) for line in sources.find_sources(run)[0].path.read_bytes().splitlines() if line.strip()]


def parquet(path: Path, **columns: Any) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path)


FORMS: dict[str, tuple[str, bytes]] = {
    "array": ("rows.json", json.dumps(ROWS).encode()),
    "array with line feeds": ("rows.json", b"\xef\xbb\xbf" + json.dumps(ROWS, indent=1).encode()),
    "array under another name": ("rows.jsonl", b" \n" + json.dumps(ROWS).encode()),
    "lines": ("rows.json", LINES.encode()),
    "gzip": ("rows.jsonl.gz", gzip.compress(LINES.encode())),
    "gzip of an array": ("rows.json.gz", gzip.compress(json.dumps(ROWS).encode())),
    "gzip without suffix": ("rows", gzip.compress(LINES.encode())),
    "bzip2": ("rows.jsonl.bz2", bz2.compress(LINES.encode())),
    "xz of CSV": ("rows.csv.xz", lzma.compress(b"instruction,response\n" + b'Question 0,"[yes], {no}"\n' * 3)),
    "TSV": ("rows.tsv", b"instruction\tresponse\n" + b"Question 0\t[yes], {no}\n" * 3),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("in_folder", [False, True])
def test_rows_are_the_same_in_every_form(tmp_path: Path, form: str, in_folder: bool) -> None:
    name, data = FORMS[form]
    if in_folder and name == "rows":
        name = "rows.jsonl"
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / name).write_bytes(data)
    rows = found(tmp_path, "d" if in_folder else f"d/{name}")
    assert [row["response"] for row in rows] == [row["response"] for row in ROWS]


def test_array_is_read_piece_by_piece(tmp_path: Path) -> None:
    rows = [{"instruction": "a" * size, "response": "b,]"} for size in (1, 100_000, 3, 40_000)] * 20
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2))
    assert found(tmp_path, "rows.json") == rows
    (tmp_path / "rows.json").write_text(json.dumps(rows, indent=2) + "\n")
    assert [line for line, _ in read_rows(tmp_path / "rows.json", "f")] == [2 + 4 * number for number in range(80)]


def test_row_that_spans_lines_is_one_row(tmp_path: Path) -> None:
    (tmp_path / "row.json").write_text(json.dumps(ROWS[0], indent=2))
    assert found(tmp_path, "row.json") == ROWS[:1]


BROKEN: dict[str, tuple[str, bytes, str]] = {
    "array cut off": ("rows.json", json.dumps(ROWS, indent=1).encode()[:-2], r"^rows.json:13: the array has no end"),
    "item cut off": ("rows.json", json.dumps(ROWS).encode()[:-20], r"^rows.json:1: the row is not JSON: Unterminated string"),
    "no comma": ("rows.json", b'[{"text": "a"}\n{"text": "b"}]', r"^rows.json:2: a comma is missing"),
    "array of numbers": ("rows.json", b"[1, 2]", "^rows.json: the data has the columns"),
    "gzip cut off": ("rows.jsonl.gz", gzip.compress(LINES.encode())[:-9], "^rows.jsonl.gz: the compressed file is cut off"),
    "zip": ("rows.jsonl", b"PK\x03\x04rest", "^rows.jsonl: it is a zip archive or an Excel file: unpack it"),
    "zstd": ("rows.jsonl.zst", b"\x28\xb5\x2f\xfdrest", "compressed with Zstandard"),
    "pointer": ("rows.jsonl", b"version https://git-lfs.github.com/spec/v1\noid", "it is a pointer of Git LFS, not the data"),
    "Parquet cut off": ("rows.parquet", b"PAR1rest", "^rows.parquet: cannot read the data: it is no complete Parquet"),
    "CSV with an open quote": ("rows.csv", b'instruction,response\n"a,b\n', "^rows.csv:2: the line is not CSV: unexpected end"),
    "CSV with too many values": (
        "rows.csv",
        b"instruction,response\na,b,c\n",
        "^rows.csv:2: the line has 3 values, the header 2",
    ),
    "CSV with too few values": ("rows.csv", b"instruction,response\na,b\nc\n", "^rows.csv:3: response is missing"),
    "CSV with a column twice": ("rows.csv", b"response,response\na,b\n", "^rows.csv: the column response is there 2 times"),
    "CSV of another code": ("rows.csv", "instruction,response\né,b\n".encode("latin-1"), "^rows.csv: the file is not UTF-8"),
    "CSV of other columns": ("rows.csv", b"id,label\n1,x\n", "^rows.csv: the data has the columns id, label; it needs instr"),
    "CSV without rows": ("rows.csv", b"instruction,response\n", "^rows.csv: the file has no rows"),
    "near miss": ("rows.csv", b"Instruction, response\na,b\n", "^rows.csv:2: instruction is missing"),
    "pairs": ("rows.json", b'[{"prompt": "a", "chosen": "b", "rejected": "c"}]', "preference training .DPO., which is not supp"),
    "text beside a response": ("rows.jsonl", b'{"text": "a", "response": "b"}', "^rows.jsonl:1: instruction is missing"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_cannot_be_read_is_refused_with_its_place(tmp_path: Path, case: str) -> None:
    name, data, words = BROKEN[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetInvalid, match=words):
        found(tmp_path, name)


NO_TEXT: dict[str, tuple[Any, str]] = {
    "binary": (b"yes", "binary"),
    "number": (7, "int64"),
    "decimal": (decimal.Decimal("1.5"), r"decimal128\(2, 1\)"),
    "date": (dt.date(2026, 1, 2), r"date32\[day\]"),
    "time": (dt.datetime(2026, 1, 2), r"timestamp\[us\]"),  # noqa: DTZ001 - a table has such values
    "truth": (True, "bool"),
    "list": (["a"], "list<element: string>"),
    "nested": ({"a": "b"}, "struct<a: string>"),
}


@pytest.mark.parametrize("column", ["instruction", "context", "response", "text"])
@pytest.mark.parametrize("kind", NO_TEXT)
def test_column_that_is_no_text_is_refused_with_its_type(tmp_path: Path, kind: str, column: str) -> None:
    value, type_ = NO_TEXT[kind]
    parquet(tmp_path / "rows.parquet", **({"instruction": ["a"], "response": ["b"]} | {column: [value]}))
    with pytest.raises(DatasetInvalid, match=f"^rows.parquet: the column {column} has the type {type_}; it must be text"):
        found(tmp_path, "rows.parquet")


def test_other_columns_may_have_any_type(tmp_path: Path) -> None:
    import pyarrow as pa

    words = pa.array(["b"]).dictionary_encode()
    parquet(tmp_path / "rows.parquet", instruction=["a"], response=words, score=[1.5], raw=[b"x"], context=pa.nulls(1))
    assert found(tmp_path, "rows.parquet") == [{"instruction": "a", "response": "b"}]


def test_value_of_json_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "rows.json").write_text('[{"instruction": "a", "response": "b"}, {"instruction": "a", "response": [1]}]')
    with pytest.raises(DatasetInvalid, match=r"^rows.json:1: response must be text, not a list$"):
        found(tmp_path, "rows.json")


@pytest.mark.parametrize("name", ["a[1].csv", "a[1].jsonl", "what?.parquet", "all*.json", "d[ab]", "{x}.csv"])
def test_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    other = {"instruction": "other", "response": "other"}
    for near in ("a1", "whatX", "allX", "x"):
        (tmp_path / f"{near}.jsonl").write_text(json.dumps(other))
        (tmp_path / f"{near}.csv").write_text("instruction,response\nother,other\n")
        parquet(tmp_path / f"{near}.parquet", instruction=["other"], response=["other"])
        (tmp_path / f"{near}.json").write_text(json.dumps([other]))
    (tmp_path / "da").mkdir()
    (tmp_path / "da" / "x.jsonl").write_text(json.dumps(other))
    with pytest.raises(DatasetNotFound, match="cannot read the data file"):
        found(tmp_path, name)
    path = tmp_path / name if "." in name else tmp_path / name / "x[2].jsonl"
    path.parent.mkdir(exist_ok=True)
    writers: dict[str, Callable[[], Any]] = {
        ".csv": lambda: path.write_text("instruction,response\na,b\n"),
        ".parquet": lambda: parquet(path, instruction=["a"], response=["b"]),
    }
    writers.get(path.suffix, lambda: path.write_text('{"instruction": "a", "response": "b"}'))()
    assert found(tmp_path, name) == [{"instruction": "a", "response": "b"}]


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_file_may_hold_rows_of_both_kinds(tmp_path: Path, name: str) -> None:
    rows = [{"instruction": "a", "context": "", "response": "b", "text": ""},
            {"instruction": "", "context": "", "response": " ", "text": "A text."}]  # fmt: skip
    if name.endswith("csv"):
        (tmp_path / name).write_text("instruction,context,response,text\na,,b,\n,, ,A text.\n,,,\n")
    else:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert found(tmp_path, name) == rows


def test_folder_of_what_people_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "a.jsonl").write_text(LINES)
    (folder / "b.jsonl").write_text('{"instruction": "q", "response": "r", "source": "wiki", "score": 3}\n')
    (folder / "c.jsonl").write_text('{"instruction": "q", "response": "r", "source": ["a"], "score": "high"}\n')
    (folder / "labels.csv").write_text("id,label\n1,x\n")
    (folder / "info.json").write_text(json.dumps({"builder": {"name": "x"}}, indent=2))
    (folder / "empty.jsonl").write_text("")
    (folder / "notes.txt").write_text("about the rows")
    parquet(folder / "none.parquet", instruction=[], response=[])
    parquet(folder / "other.parquet", id=[1, 2])
    with caplog.at_level(logging.WARNING):
        rows = found(tmp_path, "d")
    assert rows == [*ROWS, *[{"instruction": "q", "response": "r"}] * 2]
    told = sorted(record.getMessage() for record in caplog.records)
    assert told == [
        "d/info.json: not read, since it has none of our columns, but builder",
        "d/labels.csv: not read, since it has none of our columns, but id, label",
        "d/other.parquet: not read, since it has none of our columns, but id",
    ]


def test_broken_file_beside_rows_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a.jsonl").write_text(LINES)
    (tmp_path / "d" / "b.jsonl").write_text(LINES[:-9])
    (tmp_path / "d" / "c.csv").write_text("instruction,answer\na,b\n")
    with pytest.raises(DatasetInvalid) as error:
        found(tmp_path, "d")
    first, second = str(error.value).splitlines()
    assert first.startswith("d/b.jsonl:3: the row is not JSON")
    assert second == "d/c.csv:2: response is missing"


def test_output_of_runs_is_no_data(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES)
    for output in ("out", "earlier"):
        for name in ("logs/progress.json", "logs/metrics.jsonl", "tokenizer.json", "logs/samples.json"):
            path = tmp_path / output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text('{"instruction": "of a run", "response": "no"}')
    assert found(tmp_path, ".") == ROWS
    (tmp_path / "other" / "logs").mkdir(parents=True)
    (tmp_path / "other" / "logs" / "metrics.jsonl").write_text('{"text": "of this run"}')
    assert found(tmp_path, ".", output="other") == ROWS
    with pytest.raises(ConfigError, match=r"General.output_dir: it is the folder of the data, .; choose a folder of its own"):
        found(tmp_path, ".", output=".")


def test_data_may_lie_in_the_output_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "logs").mkdir(parents=True)
    (tmp_path / "out" / "logs" / "progress.json").write_text("{}")
    (tmp_path / "out" / "data").mkdir()
    (tmp_path / "out" / "data" / "rows.jsonl").write_text(LINES)
    assert found(tmp_path, "out/data") == ROWS


NAMES = ["train.jsonl", "my-train_2.csv", "training/a.json", "valid.jsonl", "dev.csv", "x.val.json", "test/b.jsonl", "eval_1.csv",
         "data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]  # fmt: skip


SETS = [NAMES[:1], NAMES[1:2], NAMES[2:3], NAMES[3:6], NAMES[6:7], NAMES[7:8], NAMES[8:], ["b/valid.jsonl", "train.jsonl"],
        ["trainer.csv"], ["contest.csv", "a.csv"]]  # fmt: skip


@pytest.mark.parametrize("names", SETS, ids=str)
def test_splits_are_those_that_the_library_datasets_finds(tmp_path: Path, names: list[str]) -> None:
    from datasets.data_files import DataFilesDict, get_data_patterns

    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    theirs = DataFilesDict.from_patterns(get_data_patterns(str(tmp_path)), base_path=str(tmp_path))
    ours = splits_of(tmp_path, [tmp_path / name for name in sorted(names)])
    assert {split: sorted(map(str, files)) for split, files in ours.items()} == {
        str(split): sorted(files) for split, files in theirs.items()
    }


def test_files_without_a_split_beside_others_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "Train.jsonl").write_text(LINES)
    (tmp_path / "d" / "more.jsonl").write_text(LINES)
    with caplog.at_level(logging.WARNING):
        assert found(tmp_path, "d") == ROWS
    assert "d: not read, since other files name a split (train, validation, test): more.jsonl" in caplog.text
