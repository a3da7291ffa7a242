"""A run that is stopped, by a signal or by a file, and the command that goes on from there."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer import Apart, Outcome

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)

LONG = 150  # steps of a run that takes long enough to be interrupted


def first_step(outcome: Outcome) -> int:
    found = re.search(r"^step (\d+)/", outcome.out, re.MULTILINE)
    assert found, outcome.err
    return int(found[1])


@pytest.fixture
def long(command: Command) -> Command:
    """A run that takes a while and ends when a stop is requested."""
    command.change("General", lora_config={"r": 4, "lora_alpha": 8, "lora_dropout": 0.1})
    command.change("Training", max_train_steps=LONG, learning_rate=0.001)
    return command


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the output folder of the long run without any interruption is kept."""
    return tmp_path_factory.mktemp("undisturbed") / "out"


@pytest.fixture
def losses(long: Command, undisturbed: Path) -> list[float]:
    """The losses of the long run without any interruption."""
    if not undisturbed.exists():
        outcome = long.run("--output_dir", str(undisturbed))
        assert outcome.code == 0, outcome.err
    return Outcome(0, "", "", undisturbed).losses


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "name"), [(signal.SIGTERM, "r"), (signal.SIGINT, None), (signal.SIGHUP, None), (signal.SIGQUIT, "r")]
)
def test_signal_stops_after_the_step_with_a_checkpoint(
    long: Command, losses: list[float], number: signal.Signals, name: str | None
) -> None:
    options = ("--run_name", name) if name else ()
    started = Apart(long, *options)
    started.wait_for(3)
    started.process.send_signal(number)
    code, out, err = started.end()
    assert code == 75, err
    progress = json.loads((started.logs / "progress.json").read_text())
    reached = progress["checkpoint"]["step"]
    assert (progress["state"], progress["step"]) == ("stopped", reached)
    assert 3 <= reached < LONG
    assert f"stopped at step {reached}; the same command resumes from there" in out
    assert [path.name for path in (long.output / "checkpoints").iterdir()] == [f"step-{reached:08}"]

    resumed = long.run(*options)
    assert resumed.code == 0, resumed.err
    assert first_step(resumed) == reached + 1
    assert resumed.losses == losses


def test_command_without_a_name_trains_anew_when_it_has_changed_or_has_finished(command: Command) -> None:
    command.change("General", save_strategy="epoch")
    command.train_until(1)
    changed = command.change("Training", learning_rate=0.02).run()
    assert changed.code == 0, changed.err
    assert "is skipped: it belongs to another run" in changed.err
    assert "step 1/4" in changed.out
    again = command.run()
    assert again.code == 0, again.err
    assert "step 1/4" in again.out


def test_hang_up_of_the_terminal_does_not_stop_a_command_under_nohup(command: Command) -> None:
    from finetune_trainer.runtime import stop

    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.on_signal(command.folder):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_whose_progress_cannot_be_read_stops_at_its_next_step_and_not_at_once(tmp_path: Path) -> None:
    from finetune_trainer.runtime import stop

    (tmp_path / "progress.json").mkdir()
    with stop.on_signal(tmp_path):
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested(tmp_path)


@pytest.mark.slow
def test_kill_at_any_moment(long: Command, losses: list[float]) -> None:
    for target in (10, 50, 100):
        started = Apart(long, "--run_name", "r", "--checkpoint_every_steps", "1")
        started.wait_for(target)
        started.process.kill()
        assert started.end()[0] == -signal.SIGKILL
    resumed = long.run("--run_name", "r")
    assert resumed.code == 0, resumed.err
    assert first_step(resumed) >= 99  # when a step is reported, the checkpoint before the last one is complete
    assert resumed.losses == losses


def test_second_signal_ends_at_once(long: Command) -> None:
    code = (
        "import os, signal, sys, pathlib\n"
        "from finetune_trainer.runtime import stop\n"
        "from finetune_trainer.tracking import progress\n"
        "logs = pathlib.Path(sys.argv[1])\n"
        "progress.write_progress(logs / 'progress.json', progress.Progress(state='training', last_report_time=progress.now()))\n"
        "with stop.on_signal(logs):\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print(stop.requested(logs), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    print('not reached')\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(long.folder)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "True\n")


@pytest.mark.slow
def test_stop_before_the_first_step_ends_at_once(command: Command) -> None:
    started = Apart(command)
    started.wait_until("starting")
    started.process.terminate()
    code, out, err = started.end()
    assert (code, out) == (75, "stopped before the first step\n"), err
    assert json.loads((started.logs / "progress.json").read_text())["state"] == "stopped"


def test_an_old_request_to_stop_is_forgotten(command: Command) -> None:
    (command.output / "logs").mkdir(parents=True)
    (command.output / "logs" / "stop").touch()
    assert command.run().code == 0
    assert not (command.output / "logs" / "stop").exists()
