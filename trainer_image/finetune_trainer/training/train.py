"""Train, evaluate and export: the whole run of a worker, from top to bottom."""

from __future__ import annotations

from contextlib import closing, suppress
from typing import TYPE_CHECKING

import torch

from finetune_trainer.checkpoint.batch_ranks import keep_batches
from finetune_trainer.checkpoint.checkpointer import Checkpointer
from finetune_trainer.errors import output_error
from finetune_trainer.modeling import load
from finetune_trainer.output import export, manifest, summary
from finetune_trainer.output.environment import describe_environment
from finetune_trainer.output.taught import describe_prompt
from finetune_trainer.runtime import distributed
from finetune_trainer.tracking.progress import PROGRESS_FILE, read_progress
from finetune_trainer.tracking.stages import enter_stage
from finetune_trainer.tracking.tracker import Tracker
from finetune_trainer.tracking.warnings import WarningCollector
from finetune_trainer.training import samples
from finetune_trainer.training.cleanup import clean_up, remove_drafts
from finetune_trainer.training.compiling import compile_layers
from finetune_trainer.training.loop import TrainingLoop
from finetune_trainer.training.memory_plan import explained
from finetune_trainer.training.precision import choose_dtype
from finetune_trainer.training.reference import take_reference
from finetune_trainer.training.seeding import seed_everything
from finetune_trainer.training.setup import build_engine, load_data

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker
    from finetune_trainer.tracking.progress import Output
    from finetune_trainer.training.loop import Report


def train(run: Run, worker: Worker, report: Report | None = None, is_preempted: Callable[[], bool] = bool) -> None:
    """Train, evaluate and export; but if earlier workers have left the complete result of this run, only say so.

    Args:
        run: the configuration and the paths.
        worker: this process in the process group.
        report: takes the metrics of each logging step, on every rank.
        is_preempted: whether the node of a worker is about to be taken away; called after each step, on rank 0.

    Raises:
        TrainerError: every failure with a known cause.
    """
    finished = distributed.broadcast_from_rank0(worker, lambda: _begin(run))
    if finished is None:
        _train(run, worker, report, is_preempted)
    elif worker.is_rank0:
        _say_again(run, worker, finished)


def _train(run: Run, worker: Worker, report: Report | None, is_preempted: Callable[[], bool]) -> None:
    with WarningCollector() as warnings:
        seed_everything(run.config.training.seed)
        compute = choose_dtype(run, worker)
        dtype: torch.dtype = getattr(torch, compute.dtype)
        enter_stage(run, worker.rank, "turning the rows into tokens")
        tokenizer = load.load_tokenizer(run)
        data = load_data(run, worker, tokenizer)
        run = keep_batches(run, worker, data)
        enter_stage(run, worker.rank, f"loading the model {run.config.general.base_model}")
        engine = build_engine(run, worker, data, dtype)

        checkpointer = Checkpointer(engine)
        start = checkpointer.restore(manifest.holds_result)
        with explained(engine):
            compile_layers(engine)
        prompts = samples.answer_before(engine, tokenizer, start)
        tracker = Tracker(run, writes=worker.is_rank0)
        world = distributed.describe(worker, run.config.training.strategy, str(dtype).removeprefix("torch."))
        tracker.start(world, engine.total_steps, start.checkpoint, worker.restarts)
        with closing(tracker), explained(engine):
            result = TrainingLoop(engine, tracker, checkpointer, report, is_preempted).run(start)
        if result is None:
            tracker.stop()
            return

        tracker.export(result)
        if prompts.samples:
            tracker.stage(f"answering {len(prompts.samples)} sample prompts after training")
        answered = samples.answer_after(engine, tokenizer, prompts, tracker.seconds)
        reference = take_reference(engine)
        inputs = export.ExportInput(engine.model, export.gather_weights(engine.model), tokenizer, dtype, reference)
        environment = describe_environment(world) | compute.environment()

    tracker.stage("writing the result")
    taught = describe_prompt(tokenizer, run.config.dataset, data.train.asked, prompts.token_ids, prompts.stops)
    run_summary = summary.summarise(engine, tracker, answered, environment, warnings.messages, taught)
    output = distributed.broadcast_from_rank0(worker, lambda: export.export(run, inputs, run_summary))
    # The checkpoints stay until every rank knows that the result is complete: if one is lost before, all are restarted.
    distributed.all_gather(worker, lambda: None)
    if worker.is_rank0:
        clean_up(run)
    tracker.finish(output)


def _begin(run: Run) -> Output | None:
    """The complete result of this run, if there is one: Ray restarts all workers also where one is lost when all is done. Where
    there is none, remove the drafts of earlier workers.
    """
    try:
        finished = manifest.result_of(run)
    except OSError as error:
        raise output_error(run.output_dir, error) from error
    if finished is None:
        remove_drafts(run)
    return finished


def _say_again(run: Run, worker: Worker, output: Output) -> None:
    """Tidy up and report the end, which the workers that wrote the result may not have done."""
    clean_up(run)
    tracker = Tracker(run, writes=True)
    with suppress(OSError, ValueError):
        last = read_progress(run.logs / PROGRESS_FILE) or tracker.progress
        tracker.progress = last.model_copy(update={"attempt": run.attempt, "percent": 100, "restarts": worker.restarts})
    tracker.finish(output)
