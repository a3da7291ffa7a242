"""What each worker runs, from the rows to the exported model. Read it from top to bottom."""

from __future__ import annotations

import logging
import math
import random
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer import batches, cpu, devices, distributed, export, model, prompts
from finetune_trainer.errors import ConfigError, LossNotFinite
from finetune_trainer.loss import SupervisedLoss
from finetune_trainer.progress import Result
from finetune_trainer.rows import read_rows
from finetune_trainer.tracker import StepDone, Tracker

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from finetune_trainer.distributed import Worker
    from finetune_trainer.prompts import Examples
    from finetune_trainer.run import Run

    Report = Callable[[dict[str, Any]], None]

log = logging.getLogger(__name__)

MAX_GRADIENT_NORM = 1.0
"""Gradients are clipped to this norm: the default of the HF Trainer, so of llm-on-ray."""


@dataclass(frozen=True)
class Data:
    """Tokenised rows, to train on and to evaluate on."""

    train: Examples
    train_rows: NDArray[np.int64]
    """Numbers of the rows in `train` that are trained on."""
    held: Examples
    held_rows: NDArray[np.int64]
    """Numbers of the rows in `held` that are evaluated."""
    pad: int


@dataclass
class Engine:
    """What a step needs, apart from its rows."""

    run: Run
    worker: Worker
    data: Data
    causal: Any
    """The model, adapted or not."""
    loss: torch.nn.Module
    """SupervisedLoss in its DDP or FSDP wrapping."""
    autocast: Callable[[], AbstractContextManager[Any]]
    scaler: torch.amp.GradScaler
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: Any = field(init=False)
    weights: list[torch.nn.Parameter] = field(init=False)
    """Those that learn."""


def train(run: Run, worker: Worker, report: Report | None = None) -> None:
    """Train, evaluate and export.

    Args:
        run: what to do.
        worker: this process in the group.
        report: takes the metrics of each logging step, on every rank.

    Raises:
        TrainerError: every failure with a known cause.
    """
    seed_everything(run.config.training.seed)
    dtype = choose_dtype(run, worker)
    tokenizer = model.load_tokenizer(run)
    data = distributed.from_first(worker, lambda: load_data(run, tokenizer))
    engine = build_engine(run, worker, data, dtype)

    total = batches.total_steps(len(data.train_rows), worker.size, run.config)
    tracker = Tracker(run, writes=worker.is_first)
    tracker.start(distributed.describe(worker, run.config.training.strategy, str(dtype).removeprefix("torch.")), total)
    result = train_steps(engine, total, tracker, report)

    result = evaluate(engine, result)
    tracker.export(result)
    trained = export.Trained(engine.causal, export.gather_weights(engine.causal), tokenizer, dtype)
    tracker.finish(distributed.from_first(worker, lambda: export.export(run, trained, result)))


def seed_everything(seed: int) -> None:
    """Make the first weights of adapters and dropout repeatable."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - model code of others may use the global generator
    torch.manual_seed(seed)


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


def load_data(run: Run, tokenizer: Any) -> Data:
    """Read and tokenise the rows."""
    config = run.config
    name = config.dataset.train_file
    train = prompts.encode_rows(read_rows(run.train_file, name), tokenizer, config.dataset, name)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if run.validation_file is None:
        percentage = config.dataset.validation_split_percentage
        train_rows, held_rows = batches.split_rows(len(train), percentage, config.training.seed)
        return Data(train, train_rows, train, held_rows, pad)
    name = config.dataset.validation_file or ""
    held = prompts.encode_rows(read_rows(run.validation_file, name), tokenizer, config.dataset, name)
    return Data(train, np.arange(len(train)), held, np.arange(len(held)), pad)


def build_engine(run: Run, worker: Worker, data: Data, dtype: torch.dtype) -> Engine:
    """Load the model, spread it over the workers, and make optimizer and schedule."""
    training = run.config.training
    causal = model.load_model(run, dtype, worker.device)
    check_fit(causal, data)
    sharded = training.strategy == "FSDP" and worker.size > 1

    def autocast() -> AbstractContextManager[Any]:
        # FSDP lowers the weights itself.
        if dtype == torch.float32 or sharded:
            return nullcontext()
        return torch.autocast(worker.device.type, dtype=dtype)

    loss = distributed.distribute(SupervisedLoss(causal), worker, training.strategy, dtype)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=dtype == torch.float16)
    engine = Engine(run, worker, data, causal, loss, autocast, scaler)
    engine.weights = [weight for weight in loss.parameters() if weight.requires_grad]
    engine.optimizer = make_optimizer(run, engine.weights)
    engine.schedule = make_schedule(run, engine)
    return engine


def check_fit(causal: Any, data: Data) -> None:
    """Refuse rows that the model has no position or no embedding for.

    Raises:
        ConfigError: the configuration does not fit the model.
    """
    limit, longest = model.longest_input(causal), int(max(data.train.lengths.max(), data.held.lengths.max()))
    if limit is not None and longest > limit:
        raise ConfigError([f"Dataset.max_length: rows have up to {longest} tokens, the model takes {limit}"])
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    highest = int(max(data.train.tokens.max(), data.held.tokens.max(), data.pad))
    if highest >= vocabulary:
        raise ConfigError([f"General.tokenizer_name: the tokenizer gives token {highest}, the model knows {vocabulary}"])


def make_optimizer(run: Run, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of torch with this name."""
    training = run.config.training
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, training.torch_optimizer)
    options: dict[str, Any] = {"lr": training.learning_rate}
    if training.torch_optimizer != "Rprop":  # it has no weight decay
        options["weight_decay"] = training.weight_decay
    return kind(weights, **options)


def make_schedule(run: Run, engine: Engine) -> Any:
    """The learning-rate schedule of transformers with this name, without warm-up as in llm-on-ray."""
    from transformers import get_scheduler

    total = batches.total_steps(len(engine.data.train_rows), engine.worker.size, run.config)
    name = run.config.training.lr_scheduler
    return get_scheduler(name, engine.optimizer, num_warmup_steps=0, num_training_steps=total)


def train_steps(engine: Engine, total: int, tracker: Tracker, report: Report | None) -> Result:
    """Take all optimizer steps.

    Raises:
        LossNotFinite: the loss became NaN or infinite.
    """
    data, worker, every = engine.data, engine.worker, engine.run.config.training.logging_steps
    lengths, supervised = data.train.lengths[data.train_rows], data.train.supervised[data.train_rows]
    plan = batches.plan_steps(lengths, worker.size, engine.run.config)
    first = mean = float("nan")
    window_loss, window_tokens = 0.0, 0
    for number, step in zip(range(1, total + 1), plan, strict=False):
        rows = np.concatenate([part for micro in step.micro for part in micro])
        tokens = int(supervised[rows].sum())
        rate = engine.schedule.get_last_lr()[0]
        summed = take_step(engine, step, tokens)
        if not math.isfinite(summed):
            raise LossNotFinite(f"the loss is {summed} at step {number} of {total}; "
                                "try a lower Training.learning_rate, or mixed_precision: no")  # fmt: skip
        window_loss, window_tokens = window_loss + summed, window_tokens + tokens
        logs = number % every == 0 or number in (1, total)
        mean = window_loss / max(window_tokens, 1)
        first = mean if number == 1 else first
        tracker.step(StepDone(number, step.epoch, mean, rate, int(lengths[rows].sum())), logs=logs)
        if logs:
            window_loss, window_tokens = 0.0, 0
            if report is not None:
                report({"step": number, "epoch": step.epoch, "loss": mean, "learning_rate": rate})
    return Result(train_loss=mean, first_loss=first)


def take_step(engine: Engine, step: batches.Step, tokens: int) -> float:
    """One optimizer step. The gradient is that of the mean over the step's supervised tokens, on all ranks alike.

    Args:
        engine: the model and what moves it.
        step: the rows.
        tokens: supervised tokens of the step, of all ranks.

    Returns:
        The loss summed over these tokens, of all ranks.
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
    return distributed.sum_over_ranks(float(summed))


def make_batch(engine: Engine, examples: Examples, rows: NDArray[np.int64]) -> batches.Batch:
    """The tensors of some rows on this worker's device."""
    side = engine.run.config.dataset.padding_side
    longest = model.longest_input(engine.causal)
    return batches.collate(examples, rows, engine.data.pad, side, longest).to(engine.worker.device)


@torch.no_grad()
def evaluate(engine: Engine, result: Result) -> Result:
    """Add the loss over the evaluation rows, if there are any."""
    data, worker = engine.data, engine.worker
    if not len(data.held_rows):
        return result
    engine.loss.eval()
    size = engine.run.config.training.batch_size * worker.size
    rows = data.held_rows[np.argsort(-data.held.lengths[data.held_rows])]
    summed, tokens = 0.0, int(data.held.supervised[rows].sum())
    for start in range(0, len(rows), size):
        share = batches.deal(rows[start : start + size], data.held.lengths, worker.size)[worker.rank]
        with engine.autocast():
            summed += float(engine.loss(make_batch(engine, data.held, share)))
    engine.loss.train()
    mean = distributed.sum_over_ranks(summed) / max(tokens, 1)
    devices.empty_cache(worker.device)
    perplexity = math.exp(mean) if mean < math.log(1e300) else math.inf
    return result.model_copy(update={"eval_loss": mean, "perplexity": perplexity})
