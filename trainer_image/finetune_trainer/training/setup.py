"""Set up the engine of a worker before the first step: rows, model, optimizer and schedule."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from finetune_trainer.data import batching, splits, step_plan, tokenize, tokenize_options
from finetune_trainer.data.splits import Data
from finetune_trainer.errors import ConfigError
from finetune_trainer.modeling import families, frozen, load, packed_families
from finetune_trainer.modeling.head_loss import CHUNK_BYTES
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.runtime import devices, distributed, host, one_reader, parallel
from finetune_trainer.runtime.engine import Engine
from finetune_trainer.runtime.masters import Masters
from finetune_trainer.training.memory_plan import prepare_memory
from finetune_trainer.training.optimizer import make_optimizer, make_schedule
from finetune_trainer.training.seeding import seed_everything

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from finetune_trainer.config.run import Run
    from finetune_trainer.runtime.distributed import Worker

log = logging.getLogger(__name__)

CHUNK_SHARE = 24
"""Part of a GPU's memory that the logits may take at once."""


def load_data(run: Run, worker: Worker, tokenizer: Any) -> Data:
    """Let rank 0 tokenise the rows, and map the tokens into the memory of each rank. A collective."""
    config = run.config
    options = tokenize_options.TokenizeOptions(tokenize.count_processes(run, host.available_cpus(), worker.local_size))
    made, apart = distributed.broadcast_from_rank0(worker, lambda: tokenize.tokenize_files(run, tokenizer, options))
    train = tokenize.open_tokens(run, made)
    # A token of the rows: padding is masked, and the model may not have the tokenizer's own pad token.
    pad = int(train.row(0)[-1])
    if apart is not None:
        evaluation = tokenize.open_tokens(run, apart)
        return Data(train, np.arange(len(train)), evaluation, np.arange(len(evaluation)), pad)
    train_rows, eval_rows = splits.split_rows(train.lines, config.dataset.validation_split_percentage, config.training.seed)
    return Data(train, train_rows, train, eval_rows, pad)


def build_engine(
    run: Run, worker: Worker, rows: Data, dtype: torch.dtype, product: frozen.Product = frozen.scaled_product
) -> Engine:
    """Load the model, wrap it for data-parallel training, and make optimizer and schedule. A collective.

    The product is that of frozen weights that are held in 8 bits.
    """
    training = run.config.training
    model = load_fitting_model(run, worker, rows, dtype)
    plan = prepare_memory(run, worker, model, rows, dtype)
    masters = Masters(model.to(worker.device), dtype) if needs_masters(run, worker, dtype) else None
    round_frozen(run, worker, model, product)
    chunk_bytes = max(CHUNK_BYTES, devices.total_memory(worker.device) // CHUNK_SHARE)
    loss = parallel.parallelize(SupervisedLoss(model, chunk_bytes), worker, training.strategy, dtype)

    def autocast() -> AbstractContextManager[Any]:
        # FSDP converts the weights itself, and with masters the model's own are of this type.
        if dtype == torch.float32 or masters is not None or parallel.is_sharded(loss):
            return nullcontext()
        return torch.autocast(worker.device.type, dtype=dtype)

    learning = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    if masters is not None:
        learning = masters.named(learning)
    optimizer = make_optimizer(run, model, learning)
    if masters is None and not parallel.is_sharded(loss):
        devices.use_ipex(loss, optimizer, worker.device)
    scaler = torch.amp.GradScaler(worker.device.type, enabled=dtype == torch.float16)
    made_for = run.batch_ranks or worker.size
    total_steps = step_plan.total_steps(rows.train.lengths[rows.train_rows], made_for, run.config)
    return Engine(
        run=run,
        worker=worker,
        data=rows,
        model=model,
        loss=loss,
        learning=learning,
        masters=masters,
        optimizer=optimizer,
        schedule=make_schedule(run, optimizer, total_steps),
        autocast=autocast,
        scaler=scaler,
        packed=run.config.dataset.group and pack_rows(loss, model, worker, autocast),
        total_steps=total_steps,
        reads_late=worker.device.type == "cuda" and not scaler.is_enabled(),
        reduces_each=plan.reduces_each,
        forecast=plan.forecast,
    )


def load_fitting_model(run: Run, worker: Worker, rows: Data, dtype: torch.dtype) -> Any:
    """Load the model, on rank 0 only if it will be sharded, and check that it fits the rows. A collective."""
    shards = run.config.training.strategy == "FSDP" and worker.size > 1
    model = one_reader.load_on_rank0(run, worker, dtype) if shards else load.load_model(run, dtype)
    if worker.is_rank0:
        families.warn_if_unknown(model.config.model_type)
    check_fit(model, rows)
    return model


def round_frozen(run: Run, worker: Worker, model: Any, product: frozen.Product) -> None:
    """Hold the frozen linear layers as the configuration says.

    Raises:
        ConfigError: the model has none that can be held so.
    """
    if run.config.general.frozen_dtype is not None:
        held = frozen.hold_in_8_bits(model, worker.device, product)
        if worker.is_rank0:
            log.info("%d frozen linear layers are held in fp8", held)


def needs_masters(run: Run, worker: Worker, dtype: torch.dtype) -> bool:
    """Whether the model computes with weights in bfloat16, and the optimizer has masters of them in float32.

    FSDP does the same with its shards, and DDP would add up the gradients of the ranks in bfloat16.
    """
    return dtype == torch.bfloat16 and run.config.general.lora_config is None and worker.size == 1


def pack_rows(
    loss: torch.nn.Module, model: Any, worker: Worker, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> bool:
    """Switch the model to attention over packed rows if it keeps the rows apart on every rank; return whether it does.

    A collective.
    """
    model = families.unwrapped(model)
    family = model.config.model_type
    if not families.family_of(family).packs_rows:
        return False
    keeps = packed_families.take_over(model) and keeps_rows_apart(loss, worker, autocast)
    packed = all(distributed.all_gather(worker, lambda: keeps))
    if not packed:
        packed_families.give_back(model)
        if worker.is_rank0:
            log.warning("this model of type %s does not keep packed rows apart: rows are padded", family)
    return packed


def keeps_rows_apart(loss: torch.nn.Module, worker: Worker, autocast: Callable[[], AbstractContextManager[Any]]) -> bool:
    """Whether the loss of a row is exactly the same when the row before it in the line is another one. A collective.

    It is computed as in a step and as in an evaluation, since attention with dropout has a kernel of its own. The seed
    drops the same in both lines.
    """
    for training in (True, False):
        losses = []
        for batch in batching.batches_with_one_target():
            seed_everything(0)
            with parallel.without_gradients(loss, training=training), autocast():
                losses.append(float(loss(batch.to(worker.device))))
        if losses[0] != losses[1]:
            return False
    return True


def check_fit(model: Any, rows: Data) -> None:
    """Refuse rows that are too long for the model, or whose tokens the model does not have.

    Raises:
        ConfigError: the configuration does not fit the model.
    """
    limit, longest = families.longest_input(model), rows.longest
    if limit is not None and longest > limit:
        raise ConfigError([f"Dataset.max_length: rows have up to {longest} tokens, the model takes {limit}"])
    vocabulary = model.get_input_embeddings().weight.shape[0]
    highest = max(rows.train.highest, rows.eval.highest)
    if highest >= vocabulary:
        raise ConfigError([f"General.tokenizer_name: the tokenizer gives token {highest}, the model knows {vocabulary}"])
