"""The model with everything that moves it: how rows, weights, optimizer and schedule come together before the first step."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data import batching, tokenize
from finetune_trainer.errors import ConfigError
from finetune_trainer.modeling import attention, families, load
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime import devices, distributed, host

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from finetune_trainer.config.run import Run
    from finetune_trainer.data.prompts import Examples
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)


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
    joins_rows: bool
    """Whether the rows of a batch lie one behind the other, without padding."""
    optimizer: torch.optim.Optimizer = field(init=False)
    schedule: Any = field(init=False)
    weights: list[torch.nn.Parameter] = field(init=False)
    """Those that learn."""

    @property
    def sorts_rows(self) -> bool:
        """Whether rows of alike length meet in a batch."""
        return self.run.config.dataset.group and not self.joins_rows

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return batching.total_steps(len(self.data.train_rows), self.worker.size, self.run.config)


def load_data(run: Run, worker: Worker, tokenizer: Any) -> Data:
    """Have rank 0 tokenise the rows, and map the tokens into the memory of each rank. A collective."""
    config = run.config
    work = tokenize.Work(tokenize.count_processes(run, host.available_cpus(), worker.local_size))
    made, apart = distributed.from_first(worker, lambda: tokenize.tokenise(run, tokenizer, work))
    train = tokenize.open_tokens(run, made)
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if apart is not None:
        held = tokenize.open_tokens(run, apart)
        return Data(train, np.arange(len(train)), held, np.arange(len(held)), pad)
    train_rows, held_rows = batching.split_rows(len(train), config.dataset.validation_split_percentage, config.training.seed)
    return Data(train, train_rows, train, held_rows, pad)


def build_engine(run: Run, worker: Worker, rows: Data, dtype: torch.dtype) -> Engine:
    """Load the model, spread it over the workers, and make optimizer and schedule."""
    config, training = run.config, run.config.training
    causal = load.load_model(run, dtype)
    if worker.is_first:
        families.warn_if_unknown(causal.config.model_type)
    check_fit(causal, rows)
    loss = distributed.distribute(SupervisedLoss(causal), worker, training.strategy, dtype)

    def autocast() -> AbstractContextManager[Any]:
        # FSDP lowers the weights itself.
        if dtype == torch.float32 or distributed.is_sharded(loss):
            return nullcontext()
        return torch.autocast(worker.device.type, dtype=dtype)

    joins = config.dataset.group and joins_rows(loss, causal, worker.device)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=dtype == torch.float16)
    engine = Engine(run, worker, rows, causal, loss, autocast, scaler, joins)
    engine.weights = [weight for weight in loss.parameters() if weight.requires_grad]
    engine.optimizer = make_optimizer(run, engine.weights)
    if not distributed.is_sharded(loss):
        devices.use_ipex(loss, engine.optimizer, worker.device)
    engine.schedule = make_schedule(run, engine)
    return engine


def joins_rows(loss: torch.nn.Module, causal: Any, device: torch.device) -> bool:
    """Whether a model takes the rows of a batch without padding, each for itself; from then on its attention does so.

    It is tried: a row's loss is the same, bit for bit, when the row before it is another one. A collective.
    """
    causal = families.unwrapped(causal)
    family, before = causal.config.model_type, causal.config._attn_implementation  # noqa: SLF001 - it has no public name
    if not families.family_of(family).joins_rows:
        return False
    causal.set_attn_implementation(attention.NAME)
    with distributed.without_learning(loss):
        one, other = (float(loss(batch.to(device))) for batch in batching.pairs_with_one_target())
    if one != other:
        causal.set_attn_implementation(before)
        log.warning("this model of type %s does not keep joined rows apart: rows are padded", family)
    return one == other


def check_fit(causal: Any, rows: Data) -> None:
    """Refuse rows that the model has no position or no embedding for.

    Raises:
        ConfigError: the configuration does not fit the model.
    """
    limit, longest = load.longest_input(causal), int(max(rows.train.lengths.max(), rows.held.lengths.max()))
    if limit is not None and longest > limit:
        raise ConfigError([f"Dataset.max_length: rows have up to {longest} tokens, the model takes {limit}"])
    vocabulary = causal.get_input_embeddings().weight.shape[0]
    highest = max(rows.train.highest, rows.held.highest, rows.pad)
    if highest >= vocabulary:
        raise ConfigError([f"General.tokenizer_name: the tokenizer gives token {highest}, the model knows {vocabulary}"])


def make_optimizer(run: Run, weights: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of torch with this name.

    Raises:
        ConfigError: it does not work on the shards of FSDP.
    """
    training = run.config.training
    if training.torch_optimizer == "Adafactor" and any(hasattr(weight, "full_tensor") for weight in weights):
        advice = "use AdamW or SGD, or accelerate_mode DDP"
        raise ConfigError([f"Training.optimizer: torch's Adafactor does not work on the shards of FSDP; {advice}"])
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, training.torch_optimizer)
    options: dict[str, Any] = {"lr": training.learning_rate}
    if training.torch_optimizer != "Rprop":  # it has no weight decay
        options["weight_decay"] = training.weight_decay
    return kind(weights, **options)


def make_schedule(run: Run, engine: Engine) -> Any:
    """The learning-rate schedule of transformers with this name, without warm-up as in llm-on-ray."""
    from transformers import get_scheduler

    name = run.config.training.lr_scheduler
    return get_scheduler(name, engine.optimizer, num_warmup_steps=0, num_training_steps=engine.total_steps)


def make_batch(engine: Engine, examples: Examples, rows: NDArray[np.int64]) -> batching.Batch:
    """The tensors of some rows on this worker's device."""
    if engine.joins_rows:
        return batching.join(examples, rows).to(engine.worker.device)
    side = engine.run.config.dataset.padding_side
    longest = load.longest_input(engine.causal)
    return batching.collate(examples, rows, engine.data.pad, side, longest).to(engine.worker.device)
