"""Execute a run, and turn its end into an exit code."""

from __future__ import annotations

import signal
import traceback
from contextlib import nullcontext
from typing import TYPE_CHECKING

from finetune_trainer.command.outcome import last_progress, record_failure, say_stopped, write_report, write_stopped
from finetune_trainer.command.preparation import (
    already_finished,
    check_inputs,
    prepare_output,
    remove_older_result,
    write_starting,
)
from finetune_trainer.config.run import addresses_cluster
from finetune_trainer.errors import in_words
from finetune_trainer.explain import explain
from finetune_trainer.launch.launcher import launch
from finetune_trainer.runtime import stop
from finetune_trainer.tracking import console
from finetune_trainer.tracking.mirror import Mirror
from finetune_trainer.tracking.progress import PROGRESS_FILE

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


INTERRUPTED = 128 + signal.SIGINT


def execute(run: Run) -> int:
    """Execute the run while console and mirror follow it; explain a failure, and return the exit code."""
    with Mirror(run.logs) if addresses_cluster() else nullcontext():
        try:
            if already_finished(run):
                return 0
            prepare_output(run)
            with stop.on_signal(run.logs):
                write_starting(run)
                console.stage(f"checking the rows of {run.config.dataset.train_file}")
                check_inputs(run)
                remove_older_result(run)
                # The console has shown everything before a failure is explained.
                with console.Console(run):
                    launch(run)
        except stop.StoppedEarly:
            write_stopped(run)
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001 - every failure has to be recorded and explained
            return _report_failure(run, error)
    progress = last_progress(run.logs / PROGRESS_FILE)
    if progress is not None and progress.state == "stopped":
        write_report(run, progress)
        say_stopped(run, progress.checkpoint)
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
    write_report(run, record_failure(run.logs, run.attempt, known))
    return known.exit_code
