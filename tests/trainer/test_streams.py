"""Standard output that cannot be written changes nothing about the end of a run."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.support.trainer import Outcome

if TYPE_CHECKING:
    from tests.support.trainer import Command

FULL = Path("/dev/full")


def shell(command: Command, redirection: str, **environment: str) -> Outcome:
    """Run the command in a shell, with its streams redirected."""
    line = " ".join(f"'{word}'" for word in command.line())
    done = subprocess.run(["bash", "-c", f"{line} {redirection}"], capture_output=True, env=os.environ | environment)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode(), command.output)


@pytest.mark.slow
@pytest.mark.parametrize("redirection", [">/dev/full", ">/dev/full 2>&1", ">&-", "2>&-", "<&- >&- 2>&-"])
@pytest.mark.skipif(not FULL.exists(), reason="this system has no full device")
def test_output_that_cannot_be_written_does_not_fail_a_run(command: Command, redirection: str) -> None:
    outcome = shell(command, redirection)
    assert outcome.code == 0, outcome.err
    assert "Traceback" not in outcome.err
    assert "Exception ignored" not in outcome.err
    assert outcome.progress["state"] == "finished"


@pytest.mark.slow
def test_reader_that_goes_away_does_not_fail_a_run(command: Command) -> None:
    outcome = shell(command, "| head -1; exit ${PIPESTATUS[0]}")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("step 1/4")
    assert "Broken" not in outcome.err


@pytest.mark.slow
def test_terminal_without_the_letters_of_a_path_does_not_fail_a_run(command: Command) -> None:
    command.change("General", output_dir=str(command.folder / "modèle"))
    outcome = shell(command, "", PYTHONIOENCODING="ascii")
    assert outcome.code == 0, outcome.err
    assert outcome.out.rstrip().endswith(r"mod\xe8le")


@pytest.mark.slow
def test_exit_code_of_a_failed_run_is_that_of_the_failure(command: Command) -> None:
    command.write_rows()
    assert shell(command, ">/dev/full 2>&1").code == 3
