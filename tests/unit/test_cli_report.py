"""``finetune report`` and ``compare``: what a run tells of itself, in pages that need nothing else."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.builders import UID
from tests.support.shell import CLUSTER, SUBMISSION, Shell, shell_at
from tests.trainer.test_report import EVIL, Page

from finetune_client import AsyncFinetuneClient

pytestmark = pytest.mark.sampled(4)

Object = dict[str, Any]
CLAIM = "demo-1f0c3-output"
FOLDER = f"demo-{UID}"
CONFIG: Object = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}}


@pytest.fixture
async def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> AsyncIterator[Shell]:
    async with shell_at(tmp_path, monkeypatch, capsys) as shell:
        shell.cluster.helpers.claims[CLAIM] = tmp_path / "claim"
        (tmp_path / "claim" / FOLDER).mkdir(parents=True)
        monkeypatch.chdir(tmp_path)
        yield shell


def add(shell: Shell, phase: str = "Succeeded") -> None:
    output = {"persistentVolumeClaim": CLAIM, "path": FOLDER}
    ray = {"cluster": CLUSTER, "submissionId": SUBMISSION}
    shell.add(phase=phase, spec={"image": "t:1"}, status={"attempt": 1, "ray": ray, "output": output})


def step(number: int, loss: float) -> Object:
    return {"step": number, "totalSteps": 3, "epoch": 0.5, "loss": loss, "gradNorm": 1.0, "learningRate": 1e-3,
            "tokensPerSecond": 80.0 + number, "memoryBytes": 2**30}  # fmt: skip


def run(folder: Path, *records: Any, answer: str = "", summary: Object | None = None) -> Path:
    """The output folder of a run."""
    logs = folder / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    (logs / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if answer:
        sample = {"row": "rows.jsonl:1", "prompt": "Who?", "expected": "Me", "after": {"text": answer, "stopped": True}}
        (logs / "samples.json").write_text(json.dumps([sample]))
    if summary is not None:
        (logs / "summary.json").write_text(json.dumps({"version": 1, "config": CONFIG} | summary))
    return folder


async def test_the_report_of_a_run_is_copied_with_what_it_is_made_of(shell: Shell, tmp_path: Path) -> None:
    add(shell)
    folder = run(tmp_path / "claim" / FOLDER, step(1, 2.0), answer="I")
    (folder / "report.html").write_text("<p>good")
    assert await shell.run("report", "demo") == (0, "demo-report/report.html\n", "")
    assert (tmp_path / "demo-report" / "report.html").read_text() == "<p>good"
    assert (tmp_path / "demo-report" / "logs" / "samples.json").read_bytes() == (folder / "logs" / "samples.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "demo-report").rglob("*.*")) == [
        "metrics.jsonl",
        "report.html",
        "samples.json",
    ]
    assert shell.kube.objects["pods"] == {}
    assert (await AsyncFinetuneClient().report("demo", "there")).read_text() == "<p>good"


async def test_a_report_is_opened_if_that_is_asked_for(shell: Shell, tmp_path: Path) -> None:
    add(shell)
    (tmp_path / "claim" / FOLDER / "report.html").write_text("<p>good")
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\nprintf %s "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    words = [sys.executable, "-m", "finetune_client.cli", "report", "demo", "--open", "a b"]
    process = await asyncio.create_subprocess_exec(*words, env=os.environ | {"BROWSER": f"{browser} %s"}, stdout=-1)
    out, _ = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (0, b"a b/report.html\n")
    assert (tmp_path / "opened").read_text() == (tmp_path / "a b" / "report.html").as_uri()


@pytest.mark.parametrize(
    ("phase", "hint"),
    [
        ("Running", "the trainer writes it when a run ends; `finetune compare demo` draws the curves so far"),
        ("Failed", "`finetune status demo` tells why, and what to do"),
    ],
)
async def test_a_run_without_a_report_is_told_with_what_there_is(shell: Shell, phase: str, hint: str) -> None:
    add(shell, phase)
    code, out, err = await shell.run("report", "demo")
    assert (code, out) == (1, "")
    assert err == f"error: finetunejob/demo has no report ({phase})\n  -> {hint}\n"


async def test_runs_are_compared_in_a_page_that_needs_nothing_else(shell: Shell, tmp_path: Path) -> None:
    add(shell, "Running")
    run(tmp_path / "claim" / FOLDER, step(1, 2.0), step(2, 1.0), answer="nobody")
    config = CONFIG | {"Training": {"learning_rate": 0.5}}
    evaluation = {"step": 3, "epoch": 1.0, "evalLoss": 0.75, "perplexity": 2.1}
    summary = {"config": config, "environment": {"torch": "9"}, "ended": f"it was stopped {EVIL}"}
    run(tmp_path / "<b>r", step(1, 3.0), evaluation, answer=EVIL, summary=summary)
    assert await shell.run("compare", "demo", "<b>r") == (0, "comparison.html\n", "")
    text = (tmp_path / "comparison.html").read_text()
    page = Page(text)
    assert page.loaded == []
    assert {"script", "b"} & {*page.tags} == set()
    assert page.tags.count("svg") == 6
    assert all(f"var(--run-{number})" in text for number in (1, 2))
    assert "Last training loss1.00003.0000" in page.sections["Result"].replace("\n", "")
    assert "Evaluation loss–0.7500" in page.sections["Result"].replace("\n", "")
    assert EVIL in page.sections["Result"]
    differing = page.sections["Settings that differ"].replace("\n", "")
    assert "Training.learning_rate" in differing
    assert "0.5" in differing
    assert "General.base_model" not in differing
    assert "General.base_modelgpt2" in page.sections["Settings that are the same"].replace("\n", "")
    assert "torch–9" in page.sections["Data and environment, where they differ"].replace("\n", "")
    for words in ("Who?", "Me", "nobody", EVIL):
        assert words in page.sections["Answers"]


async def test_records_that_are_no_numbers_are_left_out(shell: Shell, tmp_path: Path) -> None:
    odd = [[1], {"step": "x", "loss": 1}, {"step": 2, "loss": "low"}, {"step": 3, "loss": float("nan")}, {"loss": 2.0}, 7, None]
    run(tmp_path / "mine", step(1, 2.0), *odd)
    (tmp_path / "mine" / "logs" / "summary.json").write_text('{"version": 1, "config": {"General": 7}}')
    (tmp_path / "mine" / "logs" / "samples.json").write_text("[{")
    assert await shell.run("compare", "mine", "mine", "-o", "page.html") == (0, "page.html\n", "")
    assert "First loss2.00002.0000" in Page((tmp_path / "page.html").read_text()).sections["Result"].replace("\n", "")


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        (["full"] * 9, "8 runs can be compared at most, and these are 9\n  -> leave some out"),
        (["full", "empty"], "empty has no step on record\n"),
        (["full", "other"], "other is no output folder of a run: it has no folder logs\n"),
        (["full", "nowhere"], "there is no finetunejob/nowhere in namespace team\n"),
    ],
)
async def test_what_cannot_be_compared_is_told(shell: Shell, tmp_path: Path, runs: list[str], says: str) -> None:
    run(tmp_path / "full", step(1, 2.0))
    run(tmp_path / "empty")
    (tmp_path / "other").mkdir()
    code, out, err = await shell.run("compare", *runs)
    assert (code, out, says in err) == (1, "", True), err
    assert not (tmp_path / "comparison.html").exists()


def test_a_comparison_needs_no_torch() -> None:
    code = "import sys, finetune_trainer.output.comparison; sys.exit({'torch', 'transformers', 'ray'} & {*sys.modules} != set())"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
