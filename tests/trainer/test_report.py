"""What a finished run shows: report.html and the model card."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML
from tests.support.trainer import sample_rows

from finetune_trainer.command.outcome import write_report
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.output.manifest import find_result
from finetune_trainer.tracking.metrics import read_metrics
from finetune_trainer.tracking.progress import Failure, read_progress

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

VOID = {"meta", "br", "link", "path", "use", "rect", "img"}
EVIL = '<script>alert("1")</script>'


class Page(HTMLParser):
    """Text by heading, the tags in use, and whatever would be loaded from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.sections: dict[str, str] = {}
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self._open: list[str] = []
        self._heading = ""
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self._open.append(tag)
        if tag == "h2":
            self._heading = ""
        for name, value in attrs:
            if name in ("src", "href", "xlink:href", "srcset") and not (value or "").startswith("#"):
                self.loaded.append(f"{name}={value}")
            if "url(" in (value or "") and not re.search(r"url\(#", value or ""):
                self.loaded.append(f"{name}={value}")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] == "h2":
            self._heading += data
        elif self._heading:
            self.sections[self._heading] = self.sections.get(self._heading, "") + data


@pytest.fixture
def complete(command: Command) -> Command:
    """A run with everything that a report can show."""
    command.write_rows(*[row | {"response": EVIL} for row in sample_rows()])
    command.change("General", sample_prompts=2)
    command.change("Dataset", validation_split_percentage=10, padding=False)
    return command.change("Training", learning_rate=0.02)


def test_report_is_self_contained_and_shows_everything(complete: Command) -> None:
    complete.train_until(1, "<b>r")
    outcome = complete.run("--run_name", "<b>r", "--attempt", "2")
    assert outcome.code == 0, outcome.err
    text = (outcome.output / "report.html").read_text()
    page = Page(text)
    assert page.loaded == []
    assert "script" not in page.tags
    assert "b" not in page.tags
    assert "@import" not in text
    assert page.tags.count("svg") == 5
    assert "evaluation" in page.sections["Curves"]
    assert EVIL in page.sections["Answers before and after"]
    assert page.sections["Answers before and after"].count("After training") == 2
    assert "Attempt 2 resumed after step 2." in page.sections["History"]
    assert "Dataset.padding: no effect in this release" in page.sections["Warnings"]
    assert f"{outcome.progress['result']['evalLoss']:.4f}" in page.sections["Result"]
    assert "21 rows of data.jsonl" in page.sections["Data"]
    changed, unchanged = page.sections["Configuration"].split("Keys that have their defaults")
    assert "Training.learning_rate0.02" in changed
    assert "General.lora_config.r4" in changed
    assert "Training.weight_decay" not in changed
    assert "Training.weight_decay0.0" in unchanged
    for line in ("Trainer", "torch2", "transformers5", "peft", "ray", "Python3", "Hosts", "Devicescpu", "Compute typefloat32"):
        assert line in page.sections["Environment"]
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert "report.html" in [entry["path"] for entry in manifest["files"]]


def end(command: Command, **changes: Any) -> str:
    """Have the command write the report of an interrupted run; what it wrote."""
    config = TrainerConfig.model_validate(command.config)
    run = Run(config=config, output_dir=command.output, dataset_dir=command.folder, run_name="<b>r")
    progress = read_progress(run.logs / "progress.json")
    assert progress is not None
    write_report(run, progress.model_copy(update=changes))
    return (command.output / "report.html").read_text()


def test_report_of_a_failed_run_says_why_and_shows_its_progress(complete: Command) -> None:
    complete.train_until(2, "<b>r")
    text = end(complete, state="failed", failure=Failure(reason="TrainingFailed", message=f"RuntimeError: {EVIL}"))
    assert "; ended after step 3 of 4</p>" in text
    page = Page(text)
    assert page.loaded == []
    assert "script" not in page.tags
    assert page.sections["Why it ended early"].strip() == f"TrainingFailed: RuntimeError: {EVIL}"
    assert page.tags.count("svg") == 5
    assert page.sections["Answers before and after"].count("Before training") == 2
    assert "After training" not in page.sections["Answers before and after"]
    assert "Steps3 of 4" in page.sections["Result"]


def test_command_that_fails_leaves_a_report_of_what_the_run_had_reached(complete: Command) -> None:
    complete.change("Training", max_train_steps=20)
    complete.train_until(12, "r")
    outcome = complete.run("--run_name", "r", "--attempt", "2", "--model_dir", str(complete.folder / "none"))
    assert outcome.code == 4
    page = Page((outcome.output / "report.html").read_text())
    assert page.sections["Why it ended early"].strip().startswith("ModelNotFound: ")
    assert "Steps13 of 20" in page.sections["Result"]
    assert "Perplexitynot measured" not in page.sections["Result"]
    assert "Environment" not in page.sections


def test_report_of_a_stopped_run_is_replaced_by_that_of_the_finished_one(complete: Command) -> None:
    complete.train_until(1, "<b>r")
    assert "it was stopped" in Page(end(complete)).sections["Why it ended early"]
    assert complete.run("--run_name", "<b>r", "--attempt", "2").code == 0
    assert "Why it ended early" not in Page((complete.output / "report.html").read_text()).sections


def test_no_report_of_a_run_that_has_not_trained(complete: Command) -> None:
    complete.train_until(1, "r")
    (complete.output / "report.html").touch()
    assert complete.change("Dataset", train_file="absent.jsonl").run("--run_name", "s").code == 3
    assert not (complete.output / "report.html").exists()


def test_failure_after_the_result_was_complete_leaves_the_result_alone(complete: Command) -> None:
    assert complete.run("--run_name", "<b>r").code == 0
    end(complete, state="failed", failure=Failure(reason="TrainingFailed", message="no"))
    assert find_result(complete.output, "<b>r") is not None


def test_torn_line_of_the_metrics_costs_that_line_only(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]


def test_report_names_the_split_that_a_folder_has_for_evaluation(command: Command) -> None:
    (command.folder / "rows").mkdir()
    command.write_rows(*sample_rows(), name="rows/train.jsonl")
    command.write_rows(*sample_rows(3), name="rows/validation.jsonl")
    outcome = command.change("Dataset", train_file="rows").run()
    assert outcome.code == 0, outcome.err
    assert "| Rows for evaluation | 3 rows of rows[validation] |" in (outcome.output / "README.md").read_text()


def test_curves_of_a_long_run_stay_small() -> None:
    from finetune_trainer.output import plots

    keys = ("loss", "gradNorm", "learningRate", "tokensPerSecond", "memoryBytes")
    records: list[dict[str, Any]] = [{"step": step} | dict.fromkeys(keys, 1 / step) for step in range(1, 100_001)]
    drawn = plots.draw(records)
    assert sum(map(len, drawn.values())) < 200_000
    assert all("currentColor" in svg and "var(--line)" in svg for svg in drawn.values())
    (points,) = {len(plots._points(records, key)[0]) for key in keys}
    assert points <= 602
    assert plots._points(records, "loss")[0][0] == 1
    assert plots._points(records, "loss")[0][-1] == 100_000


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT, when it loads an adapter
@pytest.mark.parametrize("lora", [True, False])
def test_model_card_says_what_it_is_and_how_to_load_it(
    complete: Command, model_folder: Callable[[str], Path], lora: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not lora:
        complete.change("General", lora_config=None)
    outcome = complete.run()
    text = (outcome.output / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert YAML(typ="safe").load(front) == {
        "base_model": str(model_folder("llama")),
        "library_name": "peft" if lora else "transformers",
        "pipeline_tag": "text-generation",
    }
    assert "| Rows to train on | 21 rows of data.jsonl, " in body
    assert "| Rows for evaluation | 3 rows: 10 % of data.jsonl, split off by seed 42 |" in body
    for title, key in (("First loss", "firstLoss"), ("Last training loss", "trainLoss"), ("Evaluation loss", "evalLoss")):
        assert f"| {title} | {outcome.progress['result'][key]:.4f} |" in body
    assert "| Tokens per second | " in body
    assert body.count(EVIL) == 2
    assert "licen" not in text.lower()
    blocks = dict(re.findall(r"^```(python|yaml)\n(.*?)^```", body, re.DOTALL | re.MULTILINE))
    assert YAML(typ="safe").load(blocks["yaml"])["Training"]["learning_rate"] == 0.02
    monkeypatch.chdir(outcome.output)
    names: dict[str, Any] = {}
    exec(blocks["python"], names)
    assert hasattr(names["model"], "peft_config") == lora
    assert names["tokenizer"].eos_token == "<|endoftext|>"
