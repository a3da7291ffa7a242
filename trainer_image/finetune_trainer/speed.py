"""The time of a step, predicted by a roofline: operations of matrices and attention, bytes moved, and what ranks exchange.

It is arithmetic only, as `memory`, from which it takes the shape of a model and the sizes of a step. The constants were fitted to
what was measured; `docs/performance.md` has the measurements and how far the prediction is from them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from finetune_trainer.memory import GATED, GIB, MOMENTS

if TYPE_CHECKING:
    from finetune_trainer.memory import Shape, Step


@dataclass(frozen=True)
class Device:
    """What a step is computed by: a GPU, or the cores of a worker."""

    name: str
    lower: float
    """Operations per second of dense matrix multiplications in 16 bits, by the data sheet; on CPUs as `single`."""
    single: float
    """The same in float32."""
    bandwidth: float
    """Bytes per second of its memory."""
    memory: int
    """Bytes; 0: unknown."""
    link: float
    """Bytes per second to the other GPUs of its host, one way."""
    measured: bool = False
    """Whether runs on it were measured, in 16 bits, and the prediction was held against them."""
    is_cpu: bool = False


GPUS = {
    "h200": Device("NVIDIA H200", 989e12, 67e12, 4.8e12, 150_109_880_320, 450e9, measured=True),
    "h100": Device("NVIDIA H100 80GB HBM3", 989e12, 67e12, 3.35e12, 84_929_347_584, 450e9, measured=True),
    "h100-pcie": Device("NVIDIA H100 PCIe", 756e12, 51e12, 2.0e12, 80 * GIB, 64e9),
    "a100": Device("NVIDIA A100 80GB", 312e12, 19.5e12, 2.0e12, 80 * GIB, 300e9),
    "a100-40gb": Device("NVIDIA A100 40GB", 312e12, 19.5e12, 1.555e12, 40 * GIB, 300e9),
    "l40s": Device("NVIDIA L40S", 362e12, 91.6e12, 0.864e12, 48 * GIB, 32e9),
    "l4": Device("NVIDIA L4", 121e12, 30.3e12, 0.3e12, 24 * GIB, 32e9),
    "max-1550": Device("Intel Data Center GPU Max 1550", 839e12, 52e12, 3.2e12, 128 * GIB, 50e9),
}
"""GPUs by the name that `finetune estimate --device` takes, each as its data sheet has it."""

CORE_RATE = 90e9
"""Operations per second of a core with AVX-512 in float32, in large multiplications: 88 to 94 were measured on an EPYC."""
CORE_BANDWIDTH, NODE_BANDWIDTH = 10e9, 200e9
"""Bytes per second of memory that a core reads and writes, and that all cores of a node do."""

CPU_LINK = 1.25e9
"""Bytes per second between workers on CPUs, of a network of 10 Gbit/s."""


def cpu(cores: float, rate: float = CORE_RATE) -> Device:
    """The cores of a worker on CPUs, each of which does so many operations per second in float32."""
    bandwidth = min(NODE_BANDWIDTH, CORE_BANDWIDTH * cores)
    return Device(f"{cores:g} CPU cores", rate * cores, rate * cores, bandwidth, 0, CPU_LINK, is_cpu=True)


SUSTAINED = 0.70
"""Part of the data sheet's rate that large matrix multiplications of a GPU reach over minutes."""

MOVED = 0.85
"""Part of the bandwidth that elementwise kernels and updates reach."""

ATTENTION = 0.30
"""Rate of attention, relative to the data sheet's: FlashAttention-2, whose backward pass is half as fast as matrices."""

WIDE_HEAD, WIDE_ATTENTION = 128, 0.4
"""Numbers of a head above which the kernel of attention has larger tiles, and what that leaves of its rate."""

NORMS, INNER, HEADS = 24, 9, 10
"""Times that compiled layers read or write a tensor, forwards and backwards: of the hidden size, of the inner size (for each
matrix before the last one), and of queries and keys."""

UNCOMPILED = 4.3
"""How much more is moved where layers are not compiled."""

UPDATE_BYTES, MOMENT_BYTES = 36, 12
"""Bytes moved for a trained weight in an update: gradient, norm, clipping, weight and its copy; and for each moment of it."""

HOST_STEP, HOST_LAYER = 0.010, 0.0034
"""Seconds of a micro-batch in which a GPU waits in any case; and seconds that a host takes to start the kernels of a layer,
forwards and backwards, which a GPU waits for that is faster."""

FP8 = 1.65
"""How much faster frozen weights in 8 bits are multiplied than in 16, with the rounding of what comes into them."""

OVERLAP = 0.5
"""Part of the backward pass behind which an exchange of gradients hides."""

LINKED, SHARED = 0.4, 0.6
"""Within a host: part of the links' rate that collectives reach, and part of their time that they take from the matrices beside
them. Of FSDP on two GPUs, the one run with shards that was measured."""


@dataclass(frozen=True)
class Work:
    """What a rank does in a step, on average."""

    step: Step
    """Tokens and supervised tokens are those of an average micro-batch."""
    seen: float
    """Positions that a token sees, on average."""


@dataclass(frozen=True)
class Seconds:
    """The time of an optimizer step, by what takes it."""

    matrices: float
    attention: float
    elementwise: float
    update: float
    host: float
    """What the device waits for its host."""
    exchange: float
    """What does not hide behind the other work, and what it takes from that."""

    @property
    def total(self) -> float:
        """Of the step."""
        return self.matrices + self.attention + self.elementwise + self.update + self.host + self.exchange


def predict(shape: Shape, work: Work, device: Device, link: float | None = None) -> Seconds:
    """The time of a step.

    Args:
        shape: the model.
        work: sizes of the step.
        device: what computes it.
        link: bytes per second between ranks, one way; None: those within a host.
    """
    step, micro = work.step, work.step.micro_batches
    rate = (device.lower if step.lower else device.single) * (1 if device.is_cpu else SUSTAINED)
    moved = device.bandwidth * MOVED
    passes = 3 if step.checkpointing else 2
    read = passes * (2 if step.lower else 4) * shape.weights / device.bandwidth
    matrices = micro * max(operations(shape, step) / rate, read)
    attention = micro * attention_seconds(shape, work, device)
    # What layers of a CPU pass on from kernel to kernel is still in its caches.
    made = dataclasses.replace(step, compiled=step.compiled or device.is_cpu)
    elementwise = micro * step.tokens * elementwise_bytes(shape, made) / moved
    rate_of_link, taken = (LINKED * device.link, SHARED) if link is None else (link, 0.0)
    exchange = exchanged_bytes(shape, step) / rate_of_link
    busy = matrices + attention + elementwise
    hidden = min(exchange, OVERLAP * busy)
    return Seconds(
        matrices=matrices,
        attention=attention,
        elementwise=elementwise,
        update=update_bytes(shape, step) / moved,
        host=0.0 if device.is_cpu else max(HOST_STEP * micro, HOST_LAYER * shape.layers * micro - busy),
        exchange=exchange - hidden + taken * hidden,
    )


def operations(shape: Shape, step: Step) -> float:
    """Floating-point operations of the matrices of a micro-batch: two for each token and weight forwards, two for the gradient of
    the inputs, two for that of a weight that is trained, and two where activations are recomputed. In 8 bits they count less.
    """
    full = step.adapter is None
    passes = (3 if full else 2) + (1 if step.checkpointing else 0)
    made = 2 * passes * step.tokens * shape.layers * shape.layer / (FP8 if step.fp8 else 1)
    made += 2 * (3 if full else 2) * step.supervised * shape.hidden * shape.vocabulary
    return made + (0 if full else 6 * step.tokens * step.trained(shape))


def attention_seconds(shape: Shape, work: Work, device: Device) -> float:
    """Seconds of attention in a micro-batch: four operations for each number of a head and position that is seen, forwards, and
    five halves of that backwards.
    """
    step = work.step
    made = (4 + 10 + (4 if step.checkpointing else 0)) * shape.layers * shape.queries * work.seen * step.tokens
    if device.is_cpu:
        return made / device.single
    rate = (device.lower if step.lower else device.single) * ATTENTION
    return made / (rate * (WIDE_ATTENTION if shape.head > WIDE_HEAD else 1))


def elementwise_bytes(shape: Shape, step: Step) -> float:
    """Bytes that the layers move for a token beside matrices and attention."""
    width = 2 if step.lower else 4
    matrices = 2 if shape.family in GATED else 1
    numbers = NORMS * shape.hidden + INNER * matrices * shape.inner + HEADS * (shape.queries + shape.keys)
    if step.adapter is not None and step.adapter.dropout:
        numbers += 4 * len(step.adapter.targets) * shape.hidden
    recomputed = 1.4 if step.checkpointing else 1
    return recomputed * width * shape.layers * numbers * (1 if step.compiled else UNCOMPILED)


def update_bytes(shape: Shape, step: Step) -> float:
    """Bytes that the update of the weights moves on a rank."""
    moments = MOMENTS.get(step.optimizer.lower(), 2)
    return step.trained(shape) * (UPDATE_BYTES + MOMENT_BYTES * moments) / (step.ranks if step.sharded else 1)


def exchanged_bytes(shape: Shape, step: Step) -> float:
    """Bytes that a rank sends in a step: gradients in float32, and with FSDP the weights twice in each micro-batch."""
    if step.ranks == 1:
        return 0.0
    others = (step.ranks - 1) / step.ranks
    trained = step.trained(shape)
    if not step.sharded:
        return 2 * others * 4 * trained
    reduced = step.micro_batches if step.reduces_each else 1
    return others * (step.micro_batches * 2 * (2 if step.lower else 4) * shape.weights + reduced * 4 * trained)
