"""``finetune run --local`` is stopped, and goes on by the same command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.support.jobs import finetune_job
from tests.support.local_run import Local
from tests.support.trainer import sample_rows

from finetune_client import local

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def start(tmp_path: Path, model_folder: Callable[[str], Path]) -> Callable[[int], Local]:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in sample_rows()))
    claims = ["--claim", f"data={tmp_path / 'data'}", "--claim", f"models={model_folder('llama')}"]

    def run(steps: int) -> Local:
        changes = {"Training__num_training_workers": 1, "Training__max_train_steps": steps, "General__sample_prompts": 0}
        job = finetune_job("demo", **changes)
        job["spec"]["model"]["persistentVolumeClaim"].pop("subPath")
        (tmp_path / "job.yaml").write_text(json.dumps(job))
        return Local(tmp_path, [sys.executable, "-m", "finetune_client.cli", "run", "--local", "-f", "job.yaml", *claims])

    return run


def trainers(folder: Path) -> list[str]:
    """Processes of the trainer that write below a folder."""
    listed = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if "-m finetune_trainer" in line and str(folder) in line]


TRAINER = """
import os, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
os.kill(os.getppid(), signal.SIGHUP)
sys.exit(1 if signal.sigtimedwait([signal.SIGTERM], 2) else 0)
"""


@pytest.mark.parametrize(("handler", "code"), [(signal.SIG_IGN, 0), (signal.SIG_DFL, 1)])
def test_hang_up_stops_a_run_but_not_one_under_nohup(handler: signal.Handlers, code: int) -> None:
    before = signal.signal(signal.SIGHUP, handler)
    try:
        assert local.wait_for(subprocess.Popen([sys.executable, "-c", TRAINER])) == code
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_stopped_run_has_its_checkpoint_and_goes_on_by_the_same_command(
    start: Callable[[int], Local], tmp_path: Path, number: signal.Signals
) -> None:
    started = start(2000)
    started.wait_for(3)
    os.killpg(started.process.pid, number)  # as a terminal does
    code, out, err = started.end()
    assert code == 75, err
    assert "Traceback" not in err
    assert trainers(tmp_path) == []
    (output,) = started.outputs
    progress: dict[str, Any] = json.loads((output / "logs" / "progress.json").read_text())
    reached = progress["checkpoint"]["step"]
    assert progress["state"] == "stopped"
    assert (output / "report.html").is_file()
    assert f"stopped at step {reached}; the same command resumes from there" in out

    again = start(2000)
    again.wait_for(reached + 1)
    again.process.send_signal(signal.SIGTERM)
    code, out, err = again.end()
    assert code == 75, err
    assert f"resumed after step {reached}" in out
    assert again.outputs == [output]
