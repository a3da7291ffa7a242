"""The command `llm_on_ray-finetune`: check everything that can be checked without torch, then launch the run."""

from __future__ import annotations

import argparse
import signal
import sys
import traceback
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from finetune_trainer import launch
from finetune_trainer.checkpoint import store
from finetune_trainer.config.run import LOGS, MERGED, Run, Saving
from finetune_trainer.config.yaml_file import load_config
from finetune_trainer.data import sources
from finetune_trainer.errors import USAGE_EXIT_CODE, ConfigError, TrainerError, explain, in_words, output_error
from finetune_trainer.output import manifest, report
from finetune_trainer.redaction import redact
from finetune_trainer.runtime import stop
from finetune_trainer.tracking import console, logbook
from finetune_trainer.tracking.mirror import Mirror
from finetune_trainer.tracking.progress import PROGRESS_FILE, Checkpoint, Failure, Output, Progress, read_progress, write_progress
from finetune_trainer.tracking.tracker import METRICS_FILE, now

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.config.schema import TrainerConfig

INTERRUPTED = 128 + signal.SIGINT

CLUSTER_WORKER_FAILURES = 3
"""How often a cluster's workers are started anew, unless the command line says."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors have exit code 1: 2 is for the contents of the configuration."""

    def error(self, message: str) -> NoReturn:
        """Print the usage and the message, and exit."""
        self.print_usage(sys.stderr)
        self.exit(USAGE_EXIT_CODE, f"{self.prog}: error: {message}\n")


def parser() -> Parser:
    """The command line."""
    parser = Parser(prog="llm_on_ray-finetune", description="Finetune a causal language model as a YAML file says.")
    option = parser.add_argument
    option("--config_file", metavar="FILE", required=True, help="the finetuning YAML: General, Dataset, Training")
    option("--strict", action="store_true", help="unknown keys are errors, not warnings")
    option("--output_dir", metavar="DIR", type=Path, help="folder of the result, instead of General.output_dir")
    option("--dataset_dir", metavar="DIR", type=Path, help="folder in which relative data files are looked up")
    option("--model_dir", metavar="DIR", type=Path, help="load the base model from this folder; the result still "
           "names General.base_model")  # fmt: skip
    option("--model_revision", metavar="REVISION", help="commit, tag or branch of the base model on the hub")
    option("--run_name", metavar="NAME", help="name of the run, the same for each attempt at it: a complete result "
           "of this name is kept, and the command ends at once")  # fmt: skip
    option("--attempt", metavar="N", type=int, default=1, help="which attempt at the run this is (default: 1)")
    option("--resume_from", metavar="DIR", type=Path, help="output folder of an earlier run: begin from its newest complete "
           "checkpoint, as long as the run has none of its own")  # fmt: skip
    option("--checkpoint_every_steps", metavar="N", type=_count, help="write a checkpoint every N optimizer steps, 0: none "
           "(default: as General.save_strategy says)")  # fmt: skip
    option("--checkpoint_keep", metavar="K", type=_positive, default=2, help="how many checkpoints stay, the newest ones "
           "(default: 2)")  # fmt: skip
    option("--max_worker_failures", metavar="N", type=_count, help="how often lost workers are started anew, from the newest "
           "checkpoint (default: 3 in a Ray cluster, else 0)")  # fmt: skip
    return parser


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise ValueError(text)
    return value


def _positive(text: str) -> int:
    return _count(text) or _count("-1")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; give the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if not arguments:
        parser().print_help(sys.stderr)
        return USAGE_EXIT_CODE
    options = parser().parse_args(arguments)
    console.set_up_logging()
    try:
        loaded = load_config(options.config_file, strict=options.strict)
    except ConfigError as error:
        return _refuse(options, error)
    run = _settle(options, loaded.config)
    with logbook.keep(run.logs, run.attempt, "driver"):
        for warning in loaded.warnings:
            console.complain(f"warning: {warning}")
        return execute(run)


def _refuse(options: argparse.Namespace, error: ConfigError) -> int:
    """Say what is wrong with the configuration, in the output folder too if the command line names it."""
    if options.output_dir is None:
        console.complain(str(error))
        return error.exit_code
    logs = options.output_dir / LOGS
    with Mirror(logs) if launch.addresses_cluster() else nullcontext(), logbook.keep(logs, options.attempt, "driver"):
        console.complain(str(error))
        _record(logs, options.attempt, error)
    return error.exit_code


def _settle(options: argparse.Namespace, config: TrainerConfig) -> Run:
    here = Path.cwd()
    return Run(
        config=config,
        output_dir=here / (options.output_dir or Path(config.general.output_dir).expanduser()),
        dataset_dir=here / options.dataset_dir if options.dataset_dir else None,
        model_dir=here / options.model_dir if options.model_dir else None,
        model_revision=options.model_revision,
        run_name=options.run_name,
        attempt=options.attempt,
        resume_from=here / options.resume_from if options.resume_from else None,
        working_dir=here,
        saving=Saving.choose(config.general.save_strategy, options.checkpoint_every_steps, options.checkpoint_keep),
        max_worker_failures=_worker_failures(options.max_worker_failures),
    )


def _worker_failures(asked: int | None) -> int:
    """On a laptop a lost worker is for its user to look at; in a cluster nodes come and go."""
    return asked if asked is not None else CLUSTER_WORKER_FAILURES if launch.addresses_cluster() else 0


def execute(run: Run) -> int:
    """Do the run under the eyes of console and mirror, and turn its failure into words and an exit code."""
    with ExitStack() as threads:
        if launch.addresses_cluster():
            threads.enter_context(Mirror(run.logs))
        try:
            if _already_finished(run):
                return 0
            _prepare(run)
            with stop.on_signal(run.logs):
                _say_starting(run)
                console.stage(f"checking the rows of {run.config.dataset.train_file}")
                _check_inputs(run)
                _make_way(run)
                threads.enter_context(console.Console(run))
                launch.launch(run)
        except stop.StoppedEarly:
            _write_stopped(run)
        except KeyboardInterrupt:
            return INTERRUPTED
        except Exception as error:  # noqa: BLE001 - the last line of defence: every failure is recorded and explained
            return _fail(run, error)
    progress = _last_progress(run.logs / PROGRESS_FILE)
    if progress is not None and progress.state == "stopped":
        _write_report(run, progress)
        _say_stopped(run, progress.checkpoint)
        return stop.STOPPED_EXIT_CODE
    console.say(f"finished: {run.output_dir}")
    return 0


def _write_report(run: Run, progress: Progress) -> None:
    """The report of a run that ended before its time is a help, no more: what went wrong is told already."""
    if manifest.is_finished(run.output_dir):
        return  # the report is part of a result
    try:
        with suppress(OSError):  # of a volume that is full, say
            report.write_interrupted(run, progress)
    except Exception as error:  # noqa: BLE001 - it must not take the place of the failure that it is about
        console.complain(f"warning: no {report.REPORT_FILE} was written: {error}")


def _write_stopped(run: Run) -> None:
    changes = {"state": "stopped", "eta_seconds": None, "last_report_time": now()}
    path = run.logs / PROGRESS_FILE
    with suppress(OSError):
        last = _last_progress(path) or Progress(attempt=run.attempt, last_report_time=now())
        write_progress(path, last.model_copy(update=changes))


def _say_stopped(run: Run, reached: Checkpoint | None) -> None:
    if reached is None:
        console.say("stopped before the first step")
    elif run.run_name:
        console.say(f"stopped at step {reached.step}; the same command goes on from there")
    else:
        console.say(f"stopped at step {reached.step}; to go on, set General.resume_from_checkpoint: {reached.path}")


def _already_finished(run: Run) -> bool:
    """Whether an earlier attempt at this run has left a complete result. Then progress.json tells of it again."""
    output = manifest.find_result(run.output_dir, run.run_name) if run.run_name else None
    if output is None:
        return False
    sources.remove(run)
    if not run.saving.after_export:
        store.prune(run.checkpoints, run.checkpoint_owner, keep=0)
    _write_finished(run, output)
    console.say(f"finished in an earlier attempt: {run.output_dir}")
    return True


def _write_finished(run: Run, output: Output) -> None:
    path = run.logs / PROGRESS_FILE
    last = _last_progress(path) or Progress(last_report_time=now())
    changes = {"attempt": run.attempt, "state": "finished", "percent": 100, "output": output, "failure": None}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_progress(path, last.model_copy(update={**changes, "last_report_time": now()}))


def _prepare(run: Run) -> None:
    """Make the output folder, and clear it of what an interrupted run has left that this one does not go on from."""
    try:
        run.logs.mkdir(parents=True, exist_ok=True)
        stop.clear(run.logs)
        if not store.is_owned(run.checkpoints, run.checkpoint_owner):
            (run.logs / METRICS_FILE).unlink(missing_ok=True)
            if not manifest.is_finished(run.output_dir):
                (run.output_dir / report.REPORT_FILE).unlink(missing_ok=True)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def _say_starting(run: Run) -> None:
    """Only when signals are looked after already: from then on a stop is expected to be orderly."""
    try:
        write_progress(run.logs / PROGRESS_FILE, Progress(attempt=run.attempt, last_report_time=now()))
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def _check_inputs(run: Run) -> None:
    """Refuse broken rows, and a checkpoint that is none, before anything heavy starts, and before an older result goes."""
    for key, source in (("base_model", run.model_source), ("tokenizer_name", run.tokenizer_source)):
        if Path(source).resolve() in {(run.output_dir / part).resolve() for part in ("", MERGED)}:
            why = f"{source} is an older result in the output folder, whose place the new one would take"
            raise ConfigError([f"General.{key}: {why}; choose another General.output_dir"])
    sources.check(run)
    if run.given_checkpoint is not None:
        try:
            store.read_marker(run.given_checkpoint)
        except store.Unusable as reason:
            raise store.refuse("General.resume_from_checkpoint", run.given_checkpoint, reason) from None


def _make_way(run: Run) -> None:
    """Remove an older result. Checkpoints stay."""
    try:
        manifest.remove_result(run.output_dir)
    except OSError as error:
        raise output_error(run.output_dir, error) from error


def _fail(run: Run, error: Exception) -> int:
    known = explain(error, run)
    if known is None:
        traceback.print_exception(error)
        known = in_words(error)
        console.complain(f"error: {str(known).splitlines()[0]}")
    else:
        console.complain(f"error: {known}")
    _write_report(run, _record(run.logs, run.attempt, known))
    return known.exit_code


def _record(logs: Path, attempt: int, error: TrainerError) -> Progress:
    """Write the failure into progress.json, beside what the run had reached; give what there is to tell."""
    path = logs / PROGRESS_FILE
    last = _last_progress(path)
    if last is None or last.attempt != attempt:
        last = Progress(attempt=attempt, last_report_time=now())
    failure = Failure(reason=error.reason, message=redact(str(error)))
    changes = {"state": "failed", "failure": failure, "eta_seconds": None, "last_report_time": now()}
    failed = last.model_copy(update=changes)
    with suppress(OSError):
        logs.mkdir(parents=True, exist_ok=True)
        write_progress(path, failed)
    return failed


def _last_progress(path: Path) -> Progress | None:
    with suppress(OSError, ValueError):
        return read_progress(path)
    return None


if __name__ == "__main__":
    sys.exit(main())
