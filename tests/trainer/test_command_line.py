"""Exit codes and messages of the command, up to the point where a model is loaded."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from finetune_trainer.__main__ import main

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command


def test_no_arguments_print_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "--config_file" in capsys.readouterr().err


def test_unknown_option_is_wrong_usage() -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["--config_file", "x.yaml", "--no-such-option"])
    assert exit_.value.code == 1


def test_missing_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "none.yaml"
    assert main(["--config_file", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}: cannot read the configuration: No such file or directory\n"


@pytest.mark.parametrize(
    ("text", "line"),
    [("General:\n  base_model: a\n  base_model: b\n", 3), ("General: {\n", 2), ("a: 1\n b: 2\n", 2)],
)
def test_syntax_error_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, line: int) -> None:
    path = tmp_path / "conf.yaml"
    path.write_text(text)
    assert main(["--config_file", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}:{line}: ")


def test_not_utf8(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "conf.yaml"
    path.write_bytes(b"General:\n  base_model: \xff\n")
    assert main(["--config_file", str(path)]) == 2
    assert capsys.readouterr().err == f"{path}:2: the file is not UTF-8 text\n"


def test_all_errors_at_once(command: Command) -> None:
    command.change("Training", batch_size="many", optimizer="Magic", device="hpu")
    command.config["Dataset"] = {}
    outcome = command.run("--output_dir", str(command.output))
    assert outcome.code == 2
    assert [line.split(": ")[1] for line in outcome.err.splitlines()] == [
        "Dataset.train_file",
        "Training.optimizer",
        "Training.batch_size",
        "Training.device",
    ]
    assert "Input should be a valid integer" in outcome.err
    assert outcome.progress["state"] == "failed"
    assert outcome.progress["failure"]["reason"] == "InvalidSpec"


def test_unknown_and_obsolete_keys(command: Command) -> None:
    command.change("Training", bacth_size=3, lora_config=1).change("General", gpt_base_model=False)
    command.write_rows()
    outcome = command.run()
    assert outcome.code == 3
    assert "Training.bacth_size: unknown key; did you mean Training.batch_size?" in outcome.err
    assert "Training.lora_config: unknown key; did you mean General.lora_config?" in outcome.err
    assert "General.gpt_base_model: obsolete and ignored: it chose" in outcome.err
    strict = command.run("--strict")
    assert strict.code == 2
    assert len(strict.err.splitlines()) == 2


def test_a_key_without_effect_is_named_when_it_asks_for_something(command: Command) -> None:
    command.change("General", report_to="none").change("Dataset", padding=False)
    outcome = command.run()
    assert "Dataset.padding: no effect in this release: the rows of a batch are padded to the longest" in outcome.err
    assert "report_to" not in outcome.err


def test_yaml_is_version_1_2(tmp_path: Path) -> None:
    from finetune_trainer.config.yaml_file import load_config

    path = tmp_path / "conf.yaml"
    path.write_text("General: {base_model: m, save_strategy: no}\nDataset: {train_file: f}\nTraining: {learning_rate: 1e-5}\n")
    loaded = load_config(path)
    assert loaded.config.training.learning_rate == 1e-5
    assert loaded.config.general.save_strategy == "no"
    assert loaded.warnings == ()


BROKEN: list[tuple[Any, str]] = [
    (b"{", "the row is not JSON"),
    (b"[1]", "the row must be an object"),
    (b'{"instruction": "a"}', "response is missing"),
    (b'{"instruction": " ", "response": "b"}', "instruction is empty"),
    (b'{"instruction": "a", "response": 5}', "response must be text, not a number"),
    (b'{"instruction": "a", "context": ["c"], "response": "b"}', "context must be text, not a list"),
    (b'{"instruction": "\xff", "response": "b"}', "the row is not UTF-8 text"),
    (b'{"instruction": "\\ud800", "response": "b"}', "instruction holds half of a surrogate pair"),
]


@pytest.mark.parametrize(("line", "what"), BROKEN)
def test_broken_row(command: Command, line: bytes, what: str) -> None:
    good = {"instruction": "a", "response": "b"}
    command.write_rows(good, b"", line, good)
    outcome = command.run()
    assert outcome.code == 3
    assert outcome.errors.startswith(f"error: data.jsonl:3: {what}")
    assert outcome.progress["failure"] == {"reason": "DatasetInvalid", "message": outcome.errors[7:].strip(), "retryable": False}


def test_many_broken_rows_are_counted(command: Command) -> None:
    command.write_rows(*[b"{}"] * 12)
    outcome = command.run()
    assert len(outcome.errors.splitlines()) == 6
    assert outcome.err.endswith("data.jsonl: and 7 more broken rows, 12 in all\n")


def test_missing_data_file(command: Command) -> None:
    outcome = command.change("Dataset", validation_file="none.jsonl").run()
    assert outcome.code == 3
    assert "none.jsonl: cannot read the data file" in outcome.err
    assert outcome.progress["failure"]["reason"] == "DatasetNotFound"


def test_output_folder_that_cannot_be_made(command: Command) -> None:
    (command.folder / "file").write_text("")
    outcome = command.run("--output_dir", str(command.folder / "file" / "out"))
    assert outcome.code == 7
    assert "the output folder is not writable: Not a directory" in outcome.err


def test_checks_need_neither_torch_nor_ray() -> None:
    code = (
        "import sys, finetune_trainer.__main__, finetune_trainer.config.yaml_file\n"
        "heavy = {'torch', 'ray', 'transformers', 'numpy'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
