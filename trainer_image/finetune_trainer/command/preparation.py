"""What is checked and prepared before the workers start."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from finetune_trainer.checkpoint import marker, store
from finetune_trainer.command.outcome import write_finished
from finetune_trainer.config.run import MERGED, REPORT_FILE
from finetune_trainer.data import sources
from finetune_trainer.errors import ConfigError, OutputInUse, output_error
from finetune_trainer.output import manifest
from finetune_trainer.runtime import stop
from finetune_trainer.tracking import console
from finetune_trainer.tracking.metrics import METRICS_FILE
from finetune_trainer.tracking.progress import PROGRESS_FILE, Progress, now, write_progress
from finetune_trainer.training.cleanup import clean_up

if TYPE_CHECKING:
    from finetune_trainer.config.run import Run


def already_finished(run: Run) -> bool:
    """Whether an earlier attempt at this run has left a complete result. If so, progress.json says it again.

    Raises:
        OutputInUse: the result is of a newer attempt.
        OutputNotWritable: it cannot be read at present.
    """
    if run.run_name is None:
        return False
    try:
        newer, output = manifest.attempt_of(run.output_dir, run.run_name), manifest.result_of(run)
    except OSError as error:
        raise output_error(run.output_dir, error) from error
    if newer > run.attempt:
        older = f"attempt {run.attempt} is older, and does not start"
        raise OutputInUse(f"{run.output_dir}: attempt {newer} at run {run.run_name} has finished; {older}")
    if output is None:
        return False
    clean_up(run)
    write_finished(run, output)
    console.say(f"finished in an earlier attempt: {run.output_dir}")
    return True


def prepare_output(run: Run) -> None:
    """Make the output folder, and remove files of an interrupted run that this run does not resume."""
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        stop.clear(run.logs)
        if not store.is_owned(run.checkpoints, run.checkpoint_owner):
            (run.logs / METRICS_FILE).unlink(missing_ok=True)
            if not manifest.is_finished(run.output_dir):
                (run.output_dir / REPORT_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def write_starting(run: Run) -> None:
    """Write the first progress file. Call it after the signal handlers are set: from then on a stop has to be orderly."""
    try:
        write_progress(run.logs / PROGRESS_FILE, Progress(attempt=run.attempt, last_report_time=now()))
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def check_inputs(run: Run) -> None:
    """Refuse broken rows and an unusable checkpoint before anything heavy starts."""
    for key, source in (("base_model", run.model_source), ("tokenizer_name", run.tokenizer_source)):
        if Path(source).resolve() in {(run.output_dir / part).resolve() for part in ("", MERGED)}:
            why = f"{source} is an older result in the output folder, whose place the new one would take"
            raise ConfigError([f"General.{key}: {why}; choose another General.output_dir"])
    sources.check(run)
    if run.given_checkpoint is not None:
        with store.refusing("General.resume_from_checkpoint", run.given_checkpoint):
            marker.read_marker(run.given_checkpoint)
