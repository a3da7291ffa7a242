"""What a run will take: memory, speed and time, from its configuration, the model's config.json and the sizes of its rows.

It needs no GPU, and none of the libraries of training. `memory` and `speed` predict a step.
"""

from __future__ import annotations

import dataclasses
import math
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer import memory, speed
from finetune_trainer.modeling import families

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.data.row_sizes import Sizes

NETWORK = 25e9 / 8
"""Bytes per second between hosts with GPUs, where nobody says: 25 Gbit/s."""

DRAWN = 200_000
"""Rows that are drawn to find the largest of a run's first steps, at most."""

FORWARD = 0.4
"""Time of a token of an evaluation, relative to one of a step: there is no backward pass, and layers are not compiled."""

COMPILING = 65.0
"""Seconds that a GPU's layers take to be compiled: 56 to 83 were measured."""

MEASURED_WEIGHTS = (0.9e9, 9e9)
"""Sizes of the models that were measured, with something around them."""

PROCESS = 3 * memory.GIB // 2
"""Memory of a worker on CPUs beside the model: Python, the libraries, and Ray."""


@dataclass(frozen=True)
class Estimate:
    """What a run takes."""

    device: speed.Device
    ranks: int
    steps: int
    rows: int
    """That are trained on, in an epoch."""
    tokens_per_step: float
    """Of all ranks."""
    recomputes: bool
    """Whether activations are recomputed."""
    memory: memory.Prediction
    """Of a rank, at the largest of its steps."""
    step: speed.Seconds
    """Time of an average step."""
    seconds: float
    """Of the whole run, from the first compilation to the last evaluation."""
    is_measured: bool
    """Whether runs like this one were measured; otherwise the figures follow from data sheets."""

    @property
    def bytes_of_rank(self) -> int:
        """Memory of a GPU, or of a worker on CPUs."""
        return self.memory.total + (PROCESS if self.device.is_cpu else 0)

    @property
    def tokens_per_second(self) -> float:
        """Of all ranks."""
        return self.tokens_per_step / self.step.total

    @property
    def fits(self) -> bool | None:
        """Whether the memory of the device suffices; None: it is unknown."""
        return self.memory.fits(self.device.memory) if self.device.memory else None


def estimate(
    config: TrainerConfig, shape: memory.Shape, sizes: Sizes, device: speed.Device, network: float | None = None
) -> Estimate:
    """Predict a run.

    Args:
        config: the finetuning YAML.
        shape: the model.
        sizes: its rows.
        device: what a rank computes with.
        network: bytes per second of a host to others; None: `NETWORK`, or that of CPUs.
    """
    training = config.training
    rows, evaluated = _split(config, sizes)
    largest, average = _micro_batches(config, shape, sizes, device)
    # A run predicts its memory on NVIDIA's GPUs only.
    known = device.memory if device.name.startswith("NVIDIA") and shape.family in families.FAMILIES else 0
    wanted = config.general.enable_gradient_checkpointing
    made = memory.fitted(shape, dataclasses.replace(largest, device=known), wanted)
    largest = dataclasses.replace(made, device=device.memory)
    average = dataclasses.replace(average, checkpointing=largest.checkpointing, reduces_each=largest.reduces_each)
    work = speed.Work(average, sizes.seen)
    step = speed.predict(shape, work, device, _link(config, device, network))
    tokens = _rows_per_step(config, sizes) * sizes.mean
    per_epoch = max(1, math.ceil(rows * sizes.mean / tokens))
    steps = training.max_train_steps or training.epochs * per_epoch
    evaluations = max(1, round(steps / per_epoch)) if evaluated else 0
    evaluating = evaluations * evaluated * sizes.mean / tokens * FORWARD * (step.matrices + step.attention + step.elementwise)
    return Estimate(
        device=device,
        ranks=training.ranks,
        steps=steps,
        rows=rows,
        tokens_per_step=tokens,
        recomputes=largest.checkpointing,
        memory=memory.predict(shape, largest),
        step=step,
        seconds=steps * step.total + evaluating + (COMPILING if average.compiled else 0.0),
        is_measured=device.measured
        and average.lower
        and training.ranks == 1
        and not largest.checkpointing
        and MEASURED_WEIGHTS[0] < shape.weights < MEASURED_WEIGHTS[1],
    )


def _split(config: TrainerConfig, sizes: Sizes) -> tuple[int, int]:
    """Rows to train on, and to evaluate on."""
    if sizes.evaluated or config.dataset.validation_file is not None:
        return sizes.rows, sizes.evaluated
    apart = min(math.ceil(sizes.rows * config.dataset.validation_split_percentage / 100), sizes.rows - 1)
    return sizes.rows - apart, apart


def _rows_per_step(config: TrainerConfig, sizes: Sizes) -> float:
    """Rows of an optimizer step, of all ranks."""
    training = config.training
    if training.tokens_per_step is not None:
        return max(1.0, training.tokens_per_step / sizes.mean)
    return training.batch_size * training.ranks * training.gradient_accumulation_steps


def _micro_batches(
    config: TrainerConfig, shape: memory.Shape, sizes: Sizes, device: speed.Device
) -> tuple[memory.Step, memory.Step]:
    """The largest micro-batch of a rank, and an average one: of rows drawn from the sample."""
    training = config.training
    count = max(1, round(_rows_per_step(config, sizes) / (training.ranks * training.gradient_accumulation_steps)))
    packs = config.dataset.group and families.family_of(shape.family).packs_rows
    chance, batches = random.Random(0), []  # noqa: S311 - nothing secret
    for _ in range(max(3, min(200, DRAWN // count))):
        chosen = [chance.randrange(len(sizes.lengths)) for _ in range(count)]
        batches.append(([sizes.lengths[row] for row in chosen], sum(sizes.supervised[row] for row in chosen)))
    taken = [_tokens(lengths, packs=packs) for lengths, _ in batches]
    largest = memory.Step(
        tokens=max(taken),
        supervised=max(learned for _, learned in batches),
        adapter=families.adapter_of(config.general.lora_config, shape.family),
        optimizer=training.optimizer,
        lower=training.mixed_precision != "no" and not device.is_cpu,
        compiled=training.compile is True or (training.compile == "auto" and device.name.startswith("NVIDIA")),
        ranks=training.ranks,
        fp8=config.general.frozen_dtype == "fp8",
        sharded=training.strategy == "FSDP",
        micro_batches=training.gradient_accumulation_steps,
        one_host=training.num_training_workers == 1,
        device=device.memory,
    )
    learned = sum(learned for _, learned in batches) // len(batches)
    return largest, dataclasses.replace(largest, tokens=round(sum(taken) / len(taken)), supervised=learned)


def _tokens(lengths: Sequence[int], *, packs: bool) -> int:
    """Tokens of a micro-batch, padding included."""
    return sum(lengths) if packs else len(lengths) * max(lengths)


def _link(config: TrainerConfig, device: speed.Device, network: float | None) -> float:
    """Bytes per second between ranks: those of one worker are on one host."""
    if config.training.num_training_workers == 1:
        return device.link
    default = device.link if device.is_cpu else NETWORK
    return default if network is None else network
