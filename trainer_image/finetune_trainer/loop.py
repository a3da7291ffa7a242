"""What each worker runs, from the rows to the exported model. Read it from top to bottom."""

from __future__ import annotations

import logging
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer import batches, cpu, devices, distributed, export, model, stop
from finetune_trainer.engine import Engine, build_engine, load_data, make_batch
from finetune_trainer.errors import LossNotFinite
from finetune_trainer.progress import Result
from finetune_trainer.resume import Keeper
from finetune_trainer.tracker import StepDone, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable

    from finetune_trainer.distributed import Worker
    from finetune_trainer.resume import Start
    from finetune_trainer.run import Run
    from finetune_trainer.state import Sums

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
    seed_everything(run.config.training.seed)
    dtype = choose_dtype(run, worker)
    tokenizer = model.load_tokenizer(run)
    data = distributed.from_first(worker, lambda: load_data(run, tokenizer))
    engine = build_engine(run, worker, data, dtype)

    keeper = Keeper(engine)
    start = keeper.restore()
    tracker = Tracker(run, writes=worker.is_first)
    world = distributed.describe(worker, run.config.training.strategy, str(dtype).removeprefix("torch."))
    tracker.start(world, engine.total_steps, start.checkpoint, worker.restarts)
    result = train_steps(engine, Watch(tracker, keeper, report, is_leaving), start)
    if result is None:
        tracker.stop()
        return

    result = evaluate(engine, result)
    tracker.export(result)
    trained = export.Trained(engine.causal, export.gather_weights(engine.causal), tokenizer, dtype)
    tracker.finish(distributed.from_first(worker, lambda: export.export(run, trained, result)))


@dataclass(frozen=True)
class Watch:
    """What looks on while the loop runs."""

    tracker: Tracker
    keeper: Keeper
    report: Report | None
    is_leaving: Callable[[], bool]

    def save(self, step: int, sums: Sums) -> None:
        """Write a checkpoint. A collective."""
        self.tracker.save(lambda: self.keeper.save(step, sums))


def seed_everything(seed: int) -> None:
    """Make what is random from here on repeatable: the first weights of adapters, and dropout."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 - model code of others may use the global generator
    torch.manual_seed(seed)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Make a step's randomness depend on nothing that came before, so that a checkpoint need not hold it."""
    seed_everything(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def choose_dtype(run: Run, worker: Worker) -> torch.dtype:
    """Choose the compute type, and set up the CPU's threads and instruction set before its first use."""
    training = run.config.training
    if worker.device.type != "cpu":
        return {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[training.mixed_precision]
    precision = cpu.choose_precision(training.mixed_precision)
    threads = cpu.choose_threads(training.resources_per_worker.CPU, worker.local_size)
    torch.set_num_threads(threads)
    if worker.is_first:
        log.info("CPU: %s, %d threads a worker%s", precision.dtype, threads, precision.note and f"; {precision.note}")
    dtype: torch.dtype = getattr(torch, precision.dtype)
    return dtype


def train_steps(engine: Engine, watch: Watch, start: Start) -> Result | None:
    """Take all optimizer steps that are left; None: the run was asked to stop, and the last step is in a checkpoint.

    Raises:
        LossNotFinite: the loss became NaN or infinite.
        OutputVolumeFull: no space left for a checkpoint.
    """
    run, data, worker, total = engine.run, engine.data, engine.worker, engine.total_steps
    lengths, supervised = data.train.lengths[data.train_rows], data.train.supervised[data.train_rows]
    plan = batches.plan_steps(lengths, worker.size, run.config, start.step, by_length=engine.sorts_rows)
    sums, noticed = start.sums, False
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
            raise LossNotFinite(f"the loss is {summed} at step {number} of {total}; "
                                "try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip
        mean = sums.add(summed, tokens)
        logs = number % run.config.training.logging_steps == 0 or number in (1, total)
        watch.tracker.step(StepDone(number, step.epoch, mean, rate, int(lengths[rows].sum())), logs=logs)
        if logs:
            sums.clear()
            if watch.report is not None:
                watch.report({"step": number, "epoch": step.epoch, "loss": mean, "learning_rate": rate})
        if stops or (leaves and not noticed) or run.saving.is_due(number, ends_epoch=step.ends_epoch):
            watch.save(number, sums)
        noticed = leaves > 0
        if stops:
            return None
    return Result(train_loss=sums.mean, first_loss=sums.first)


def take_step(engine: Engine, step: batches.Step, tokens: int) -> float:
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


def evaluate(engine: Engine, result: Result) -> Result:
    """Add the loss over the evaluation rows, if there are any."""
    data, worker = engine.data, engine.worker
    if not len(data.held_rows):
        return result
    size = engine.run.config.training.batch_size * worker.size
    rows = data.held_rows[np.argsort(-data.held.lengths[data.held_rows])]
    summed, tokens = 0.0, int(data.held.supervised[rows].sum())
    with distributed.without_learning(engine.loss):
        for start in range(0, len(rows), size):
            share = batches.deal(rows[start : start + size], data.held.lengths, worker.size)[worker.rank]
            with engine.autocast():
                summed += float(engine.loss(make_batch(engine, data.held, share)))
    mean = distributed.sum_over_ranks(summed)[0] / max(tokens, 1)
    devices.empty_cache(worker.device)
    perplexity = math.exp(mean) if mean < math.log(1e300) else math.inf
    return result.model_copy(update={"eval_loss": mean, "perplexity": perplexity})
