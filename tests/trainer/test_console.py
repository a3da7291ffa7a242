"""The progress bar on a terminal."""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.tracking.console import Console, line_of
from finetune_trainer.tracking.progress import Progress, write_progress
from finetune_trainer.tracking.stages import IMPORTING, enter_stage


def make_run(folder: Path) -> Run:
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": {"train_file": "f"}})
    run = Run(config=config, output_dir=folder, dataset_dir=None, model_dir=None, run_name=None, attempt=1, working_dir=folder)
    run.logs.mkdir(parents=True)
    return run


def test_the_bar_shows_steps_loss_speed_and_time_left(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    master, slave = os.openpty()  # as some terminals do, it tells no width
    with os.fdopen(slave, "w") as terminal, Console(run, terminal):
        report = Progress(
            step=3, total_steps=10, loss=2.31, eval_loss=2.125, tokens_per_second=202.4, eta_seconds=80,
            last_report_time=datetime.now(UTC),
        )  # fmt: skip
        write_progress(run.logs / "progress.json", report)
        shown = _read_until(master, "eta 1m20s")
    os.close(master)
    assert "3/10 steps" in shown
    assert "loss 2.31, evaluation 2.125, 202 tok/s, eta 1m20s" in shown


def test_stages_are_printed_in_order_and_again_after_workers_restart(tmp_path: Path) -> None:
    run, printed = make_run(tmp_path), io.StringIO()
    stages = (IMPORTING, "loading", IMPORTING)
    with contextlib.redirect_stderr(printed), Console(run, io.StringIO()):
        for count, stage in enumerate(stages, start=1):
            enter_stage(run, 1, "of another rank")
            enter_stage(run, 0, stage)
            _wait_for_lines(printed, count)
    lines = printed.getvalue().splitlines()
    assert [line.rpartition(" s] ")[2] for line in lines] == list(stages)
    assert all(re.match(r"\[ *\d+ s\] ", line) for line in lines)


def _wait_for_lines(printed: io.StringIO, count: int) -> None:
    deadline = time.monotonic() + 20
    while printed.getvalue().count("\n") < count and time.monotonic() < deadline:
        threading.Event().wait(0.01)


def test_lines_of_an_evaluation_and_of_a_run_that_goes_on() -> None:
    evaluation = {"step": 9, "epoch": 1.0, "evalLoss": 2.0, "perplexity": 7.389}
    assert line_of(evaluation) == "epoch 1 evaluation loss 2 perplexity 7.389"
    assert line_of(evaluation | {"perplexity": None}) == "epoch 1 evaluation loss 2"
    assert line_of({"event": "resumed", "step": 9, "attempt": 2, "restarts": 1}) == "resumed after step 9, attempt 2"


def _read_until(master: int, end: str) -> str:
    text, deadline = "", time.monotonic() + 20
    while end not in text and time.monotonic() < deadline:
        if select.select([master], [], [], 0.2)[0]:
            text += os.read(master, 4096).decode()
    return text
