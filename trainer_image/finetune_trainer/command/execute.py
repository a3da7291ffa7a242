"""Execute a run, and turn its end into an exit code."""

from __future__ import annotations

import signal
import traceback
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING

from finetune_trainer.command.outcome import last_progress, record_failure, say_stopped, write_report, write_stopped
from finetune_trainer.command.preparation import already_finished, check_inputs, prepare_output, write_starting
from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.errors import OutputInUse, OutputNotWritable, in_words
from finetune_trainer.explain import explain
from finetune_trainer.launch.launcher import launch
from finetune_trainer.runtime import lock, stop
from finetune_trainer.tracking import console, logbook
from finetune_trainer.tracking.holder import check_still_held
from finetune_trainer.tracking.mirror import Mirror
from finetune_trainer.tracking.progress import PROGRESS_FILE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from finetune_trainer.config.run import Run
    from finetune_trainer.errors import TrainerError


INTERRUPTED = 128 + signal.SIGINT


def execute(run: Run, warnings: Iterable[str] = ()) -> int:
    """Execute the run, alone in its output folder; explain a failure, and return the exit code.

    Args:
        run: the configuration and the paths.
        warnings: what is to be said about the configuration first.
    """
    try:
        with lock.hold(lock.Claim(run.output_dir, run.run_name, run.attempt)) as held, _followed(run.logs, run.attempt):
            for warning in warnings:
                console.complain(f"warning: {warning}")
            try:
                code = _execute(replace(run, lock=held.token))
            except OutputInUse:
                held.complete = True  # or it is another's
                raise
            held.complete = code == 0
            return code
    except OutputNotWritable as error:  # nothing can or may be recorded there
        console.complain(f"error: {error}")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED


def refuse(output_dir: Path, run_name: str | None, attempt: int, error: TrainerError) -> int:
    """Say why a run does not start, and record it in its output folder unless another run is at work there."""
    claim = lock.Claim(output_dir, run_name, attempt)
    try:
        with lock.hold(claim), _followed(claim.logs, attempt):
            console.complain(str(error))
            record_failure(claim.logs, attempt, error)
    except OutputNotWritable as other:
        console.complain(f"{error}\nerror: {other}")
    return error.exit_code


@contextmanager
def _followed(logs: Path, attempt: int) -> Iterator[None]:
    """Keep the log of the driver, and in a cluster copy progress.json to where the dashboard serves it."""
    with logbook.keep(logs, attempt, "driver"), Mirror(logs) if addresses_cluster() else nullcontext():
        yield


def _execute(run: Run) -> int:
    try:
        if already_finished(run):
            return 0
        prepare_output(run)
        with stop.on_signal(run.logs, lambda: check_still_held(run)):
            write_starting(run)
            console.stage(f"checking the rows of {run.config.dataset.train_file}")
            check_inputs(run)
            # The console has shown everything before a failure is explained.
            with console.Console(run):
                launch(run)
    except stop.StoppedEarly:
        write_stopped(run)
    except KeyboardInterrupt:
        return INTERRUPTED
    except OutputInUse:
        raise  # the folder is another's by now
    except Exception as error:  # noqa: BLE001 - every failure has to be recorded and explained
        return _report_failure(run, error)
    check_still_held(run)  # or the progress is another's
    progress = last_progress(run.logs / PROGRESS_FILE)
    if progress is not None and progress.state == "stopped":
        write_report(run, progress)
        say_stopped(progress.checkpoint)
        return stop.STOPPED_EXIT_CODE
    console.say(f"finished: {run.output_dir}")
    return 0


def _report_failure(run: Run, error: Exception) -> int:
    known = explain(error, run)
    if known is None:
        traceback.print_exception(error)
        known = in_words(error)
        console.complain(f"error: {str(known).splitlines()[0]}")
    else:
        console.complain(f"error: {known}")
    check_still_held(run)
    write_report(run, record_failure(run.logs, run.attempt, known))
    return known.exit_code
