"""The progress bar on a terminal."""

from __future__ import annotations

import os
import select
import time
from datetime import UTC, datetime
from pathlib import Path

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.tracking.console import Console, line_of
from finetune_trainer.tracking.progress import Progress, write_progress


def test_the_bar_shows_steps_loss_speed_and_time_left(tmp_path: Path) -> None:
    config = TrainerConfig.model_validate({"General": {"base_model": "m"}, "Dataset": {"train_file": "f"}})
    run = Run(
        config=config, output_dir=tmp_path, dataset_dir=None, model_dir=None, run_name=None, attempt=1, working_dir=tmp_path
    )
    run.logs.mkdir(parents=True)
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
