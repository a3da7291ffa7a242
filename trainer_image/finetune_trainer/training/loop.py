"""What each worker runs, from the rows to the exported model. Read it from top to bottom."""

from __future__ import annotations

import logging
import math
import os
import random
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.checkpoint.resume import Keeper
from finetune_trainer.data import batching
from finetune_trainer.data.jsonl import SHOWN_ROWS
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.modeling import load
from finetune_trainer.output import export, summary
from finetune_trainer.runtime import cpu, devices, distributed, stop
from finetune_trainer.tracking.progress import Result
from finetune_trainer.tracking.tracker import StepDone, Tracker, enter_stage
from finetune_trainer.training import samples
from finetune_trainer.training.evaluation import Evaluation, evaluate
from finetune_trainer.training.setup import Engine, build_engine, load_data, make_batch

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from finetune_trainer.checkpoint.resume import Start
    from finetune_trainer.checkpoint.tensors import Sums
    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker

    Report = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm: the default of the HF Trainer, so of llm-on-ray."""


def train(run: Run, worker: Worker, report: Report | None = None, is_leaving: Callable[[], bool] = bool) -> None:
    """Train, evaluate and export.

    Args:
        run: what to do.
        worker: this process in the group.
        report: takes the metrics of each logging step, on every rank.
        is_leaving: whether a worker's node is known to go soon; asked after each step, on rank 0.

    Raises:
        TrainerError: every failure with a known cause.
    """
    with summary.listen() as heard:
        seed_everything(run.config.training.seed)
        compute = choose_dtype(run, worker)
        dtype: torch.dtype = getattr(torch, compute.dtype)
        enter_stage(run, worker.rank, "turning the rows into tokens")
        tokenizer = load.load_tokenizer(run)
        data = load_data(run, worker, tokenizer)
        enter_stage(run, worker.rank, f"loading the model {run.config.general.base_model}")
        engine = build_engine(run, worker, data, dtype)

        keeper = Keeper(engine)
        start = keeper.restore()
        asked = samples.begin(engine, tokenizer, start)
        tracker = Tracker(run, writes=worker.is_first)
        world = distributed.describe(worker, run.config.training.strategy, str(dtype).removeprefix("torch."))
        tracker.start(world, engine.total_steps, start.checkpoint, worker.restarts)
        with closing(tracker):
            result = train_steps(engine, Watch(tracker, keeper, report, is_leaving), start)
        if result is None:
            tracker.stop()
            return

        tracker.export(result)
        if asked.prompts:
            tracker.stage(f"answering {len(asked.prompts)} sample prompts after training")
        answered = samples.finish(engine, tokenizer, asked)
        trained = export.Trained(engine.causal, export.gather_weights(engine.causal), tokenizer, dtype)
        environment = summary.describe_environment(world) | compute.environment()

    tracker.stage("writing the result")
    told = summary.tell(engine, tracker, answered, environment, heard)
    tracker.finish(distributed.from_first(worker, lambda: export.export(run, trained, told)))


@dataclass(frozen=True)
class Watch:
    """What looks on while the loop runs."""

    tracker: Tracker
    keeper: Keeper
    report: Report | None
    is_leaving: Callable[[], bool]

    def step(self, done: StepDone, *, logs: bool) -> None:
        """A step is done; `logs`: it goes on record."""
        self.tracker.step(done, logs=logs)
        if logs and self.report is not None:
            self.report({"step": done.step, "epoch": done.epoch, "loss": done.loss, "learning_rate": done.learning_rate})

    def save(self, step: int, sums: Sums) -> None:
        """Write a checkpoint. A collective."""
        self.tracker.save(lambda: self.keeper.save(step, sums))

    def evaluate(self, engine: Engine, step: int, epoch: float) -> Evaluation | None:
        """Evaluate the model after a step, if there are rows for it. A collective."""
        rows = len(engine.data.held_rows)
        if rows and step == engine.total_steps:
            self.tracker.stage(f"evaluating the model on {rows} rows")
        with self.tracker.aside():
            evaluation = evaluate(engine, self.tracker.alive)
            if evaluation is not None:
                self.tracker.evaluated(step, epoch, evaluation)
        return evaluation


def seed_everything(seed: int) -> None:
    """Make what is random from here on repeatable: the first weights of adapters, and dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - model code of others may use the global generator
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make a step's randomness depend on nothing that came before, so that a checkpoint need not hold it."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def choose_dtype(run: Run, worker: Worker) -> cpu.Compute:
    """Choose the compute type, and set up the CPU's threads and instruction set before its first use."""
    training = run.config.training
    if worker.device.type != "cpu":
        return cpu.Compute({"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[training.mixed_precision])
    precision = cpu.choose_precision(training.mixed_precision)
    threads = cpu.choose_threads(training.resources_per_worker.CPU, worker.local_size)
    bound = cpu.bind(threads, worker.local_rank, worker.local_size)
    torch.set_num_threads(threads)
    precision = cpu.agree(distributed.on_each(worker, lambda: precision))[worker.rank]
    notes = (precision.note,) if precision.note else ()
    compute = cpu.Compute(precision.dtype, os.environ.get(cpu.ISA_VARIABLE, ""), threads, bound, notes)
    if worker.is_first:
        log.info("CPU: %s", ", ".join(f"{name}: {line}" for name, line in compute.environment().items()))
    elif compute.cpus:
        log.info("bound to CPUs %s", cpu.ranges(compute.cpus))
    return compute


def train_steps(engine: Engine, watch: Watch, start: Start) -> Result | None:
    """Take all optimizer steps that are left; None: the run was asked to stop, and the last step is in a checkpoint.

    Raises:
        LossNotFinite: the loss became NaN or infinite.
        OutputVolumeFull: no space left for a checkpoint.
    """
    run, data, worker, total = engine.run, engine.data, engine.worker, engine.total_steps
    lengths, supervised = data.train.lengths[data.train_rows], data.train.supervised[data.train_rows]
    # The step before comes along: an evaluation is due when it was the last one of an epoch.
    plan = batching.plan_steps(lengths, worker.size, run.config, max(start.step - 1, 0), by_length=engine.sorts_rows)
    sums, noticed, evaluation = start.sums, False, None
    if start.step and ((before := next(plan)).ends_epoch or start.step == total):
        evaluation = watch.evaluate(engine, start.step, before.epoch)
    for number, step in zip(range(start.step + 1, total + 1), plan, strict=False):
        seed_step(run.config.training.seed, number, worker.rank)
        rows = np.concatenate([part for micro in step.micro for part in micro])
        tokens = int(supervised[rows].sum())
        rate = engine.schedule.get_last_lr()[0]
        summed = take_step(engine, step, tokens)
        # Rank 0 alone looks for requests, and tells the others by the sum that is made anyway.
        asked = (stop.requested(run.logs), watch.is_leaving()) if worker.is_first else (False, False)
        summed, stops, leaves = distributed.sum_over_ranks(summed, *map(float, asked))
        if not math.isfinite(summed):
            raise not_finite(engine, summed, number, rows)
        memory = devices.peak_memory(worker.device)
        done = StepDone(number, step.epoch, sums.add(summed, tokens), rate, int(lengths[rows].sum()), memory)
        logs = number % run.config.training.logging_steps == 0 or number in (1, total)
        watch.step(done, logs=logs)
        if logs:
            sums.clear()
        if stops or (leaves and not noticed) or run.saving.is_due(number, ends_epoch=step.ends_epoch):
            watch.save(number, sums)
        noticed = leaves > 0
        if stops:
            return None
        if step.ends_epoch or number == total:
            # After the checkpoint, which is what there may be no time for.
            evaluation = watch.evaluate(engine, number, step.epoch)
    return make_result(sums, evaluation)


def make_result(sums: Sums, evaluation: Evaluation | None) -> Result:
    """Losses of the run, the evaluation is that of the last step."""
    if evaluation is None:
        return Result(train_loss=sums.mean, first_loss=sums.first)
    measured = {"eval_loss": evaluation.loss, "perplexity": evaluation.perplexity}
    return Result(train_loss=sums.mean, first_loss=sums.first, **measured)


def not_finite(engine: Engine, loss: float, number: int, rows: NDArray[np.int64]) -> LossNotFinite:
    """The error of a loss that became NaN or infinite; it names the rows of the step, which are told by number."""
    data = engine.data
    places = [data.train.place(int(row)) for row in np.sort(data.train_rows[rows])[:SHOWN_ROWS]]
    more = [f"{len(rows) - SHOWN_ROWS} more"] if len(rows) > SHOWN_ROWS else []
    return LossNotFinite(f"the loss is {loss} at step {number} of {engine.total_steps} (rows {', '.join(places + more)}); "
                         "look at those rows, or try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip


def take_step(engine: Engine, step: batching.Step, tokens: int) -> float:
    """One optimizer step. The gradient is that of the mean over the step's supervised tokens, on all ranks alike.

    Args:
        engine: the model and what moves it.
        step: the rows.
        tokens: supervised tokens of the step, of all ranks.

    Returns:
        The loss summed over this rank's tokens.
    """
    worker = engine.worker
    # DDP and FSDP average gradients over the ranks; the sum over tokens has to be divided by their number only.
    scale = worker.size / max(tokens, 1)
    summed = torch.zeros((), device=worker.device)
    for position, shares in enumerate(step.micro, start=1):
        batch = make_batch(engine, engine.data.train, engine.data.train_rows[shares[worker.rank]])
        with distributed.without_sync(engine.loss, last=position == len(step.micro)):
            with engine.autocast():
                loss = engine.loss(batch)
            engine.scaler.scale(loss * scale).backward()
        summed += loss.detach()
    engine.scaler.unscale_(engine.optimizer)
    torch.nn.utils.clip_grad_norm_(engine.weights, MAX_GRADIENT_NORM)
    engine.scaler.step(engine.optimizer)
    engine.scaler.update()
    engine.optimizer.zero_grad(set_to_none=True)
    engine.schedule.step()
    return float(summed)
