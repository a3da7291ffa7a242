"""The memory of a GPU that a rank will take at most, predicted from the model's configuration and the sizes of a step.

It counts what is there at the end of the forward pass, when all activations are kept, and during the update, whichever is more.
It is arithmetic only: no torch and no model are needed. `docs/performance.md` compares it with what was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

GIB = 2**30

GATED = {"llama", "mistral", "gemma", "qwen2", "qwen3"}
"""Families whose inner layer has two matrices before the third one."""

INPUTS_OF_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value", "c_attn", "Wqkv"}
INPUTS_OF_INNER = {"gate_proj", "up_proj", "gate_up_proj", "fc1", "fc_in", "c_fc", "dense_h_to_4h"}
"""Linear layers, by the tensor that they take; all others take what is kept anyway, or the widest one."""
WIDEST_INPUTS = {"down_proj", "fc2", "fc_out", "c_proj", "dense_4h_to_h"}

HEAD_MULTIPLE = 8
"""Heads have a multiple of so many numbers, which the kernel of attention reads at once."""

ALIBI = 8
"""By how many numbers ALiBi makes heads longer: see `modeling/attention.py`."""

NORMED_EMBEDDINGS = {"bloom"}
"""Families whose embeddings go through a norm, whose result autocast leaves in float32: so are the inputs of all layers, then."""

MOMENTS = {"sgd": 0, "adafactor": 0, "adagrad": 1, "rmsprop": 1, "rprop": 2, "adadelta": 2}
"""Tensors that an optimizer keeps for each weight; others have two, as Adam."""

LOGIT_BYTES = 4
"""Logits of a chunk and their gradient, in bfloat16; all else of them stays in the registers of compiled kernels."""

CHUNK_LOGIT_BYTES, LEAST_CHUNK_BYTES, LEAST_CHUNK_ROWS, CHUNK_SHARE = 8, 512 * 2**20, 512, 24
"""How the output layer chooses its chunks: see `modeling/head_loss.py` and `training/setup.py`."""

AS_THEY_ARE = 1.5
"""What layers keep that are not compiled, relative to those that are: 1.45 was measured for LoRA of 8B, 1.7 for 1.2B in full."""

WORKSPACE = GIB // 4
"""Of matrix multiplications, and of the tensors of a step outside of the layers."""

FP8_BYTES = 2
"""Of a frozen weight that is held in float8: it is there a second time, transposed."""

IN_PIECES = 1.02
"""What torch reserves, relative to what it hands out, with segments that can grow."""

SPARE = 0.95
"""The part of a GPU's memory that a prediction may fill: the driver's own, and the error of the prediction."""


@dataclass(frozen=True)
class Shape:
    """What of a model's configuration decides its memory."""

    family: str
    hidden: int
    inner: int
    layers: int
    queries: int
    """Numbers of all heads of the queries of a token."""
    keys: int
    """Of the keys, and as many of the values."""
    vocabulary: int
    positions: int
    """Learned ones."""
    tied: bool
    heads: int
    """Of the queries."""
    head: int
    """Numbers of a head as the kernel of attention takes it: with those for ALiBi, and filled up."""
    kept_keys: int
    """As `keys`, of those that attention keeps: heads that share one keep a copy each if a kernel cannot share."""

    @classmethod
    def of(cls, config: dict[str, Any]) -> Shape:
        """Read a model's config.json, or `config.to_dict()` of transformers."""

        def first(*names: str, default: Any = None) -> Any:
            return next((config[name] for name in names if config.get(name) is not None), default)

        hidden, heads = first("hidden_size", "n_embd", "d_model"), first("num_attention_heads", "n_head", "n_heads")
        family = config["model_type"]
        size = first("head_dim", default=hidden // heads)
        keys = size * first("num_key_value_heads", default=heads)
        return cls(
            family=family,
            hidden=hidden,
            inner=first("intermediate_size", "ffn_dim", "n_inner", default=4 * hidden),
            layers=first("num_hidden_layers", "n_layer", "n_layers"),
            queries=size * heads,
            keys=keys,
            vocabulary=config["vocab_size"],
            positions=first("max_position_embeddings", "n_positions") if family in ("gpt2", "opt") else 0,
            tied=bool(config.get("tie_word_embeddings", family in ("gpt2", "bloom", "mpt", "opt"))),
            heads=heads,
            head=size + -size % HEAD_MULTIPLE + (ALIBI if family in ("bloom", "mpt") else 0),
            kept_keys=keys,
        )

    @property
    def layer(self) -> int:
        """Weights of a layer, without its norms and biases."""
        matrices = 3 if self.family in GATED else 2
        return self.hidden * (2 * self.queries + 2 * self.keys + matrices * self.inner)

    @property
    def weights(self) -> int:
        """All weights."""
        embeddings = self.vocabulary * (1 if self.tied else 2) + self.positions
        return self.layers * self.layer + self.hidden * embeddings


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter."""

    rank: int
    targets: frozenset[str]
    dropout: bool

    def weights(self, shape: Shape) -> int:
        """Its weights, about: each of its layers is taken for one from hidden to hidden, or from or to the widest tensor."""
        wide = sum(name in WIDEST_INPUTS | INPUTS_OF_INNER for name in self.targets)
        narrow = len(self.targets) - wide
        return shape.layers * self.rank * (2 * narrow * shape.hidden + wide * (shape.hidden + shape.inner))


@dataclass(frozen=True)
class Step:
    """The largest step of a run on a rank, and how it is computed."""

    tokens: int
    """Of a micro-batch, padding included."""
    supervised: int
    adapter: Adapter | None = None
    """None: all weights are trained."""
    optimizer: str = "adamw"
    """As in Training.optimizer."""
    lower: bool = True
    """Whether it computes in 16 bits."""
    compiled: bool = True
    fp8: bool = False
    """Whether the frozen matrices of the layers are held in float8."""
    checkpointing: bool = False
    ranks: int = 1
    sharded: bool = False
    micro_batches: int = 1
    """Of the step, one after the other."""
    reduces_each: bool = False
    """Whether FSDP reduces the gradients of each micro-batch to shards, and not those of the step: it sends more, and no rank
    holds gradients of all weights."""
    one_host: bool = True
    """Whether all ranks are on one host, where it takes less time to send gradients than to recompute activations."""
    device: int = field(default=80 * GIB)
    """Memory of the GPU; 0: unknown."""

    def trained(self, shape: Shape) -> int:
        """Weights that are trained."""
        return shape.weights if self.adapter is None else self.adapter.weights(shape)


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak, by what they are for."""

    weights: int
    optimizer: int
    gradients: int
    activations: int
    logits: int
    accumulated_gradients: int = 0
    """Those of earlier micro-batches, which are there beside the activations of the next one."""

    @property
    def total(self) -> int:
        """What torch will have reserved."""
        forward = self.weights + self.optimizer + self.activations + self.logits + self.accumulated_gradients
        update = self.weights + self.optimizer + self.gradients
        return int(IN_PIECES * (max(forward, update) + WORKSPACE))

    def fits(self, device: int) -> bool:
        """Whether a GPU with this memory has room for it."""
        return self.total <= SPARE * device

    def __str__(self) -> str:
        parts = ", ".join(
            f"{name.replace('_', ' ')} {value / GIB:.1f}" for name, value in vars(self).items() if value >= GIB // 20
        )
        return f"{self.total / GIB:.1f} GiB ({parts})"


def predict(shape: Shape, step: Step) -> Prediction:
    """The memory of a rank at its peak."""
    width = 2 if step.lower else 4
    parts = step.ranks if step.sharded else 1
    trained = step.trained(shape)
    moments = 4 * MOMENTS.get(step.optimizer.lower(), 2) * trained
    # Trained weights are in float32, beside a copy that computes. Gradients are, too, and for a moment both copies have one.
    copies = 4 * trained if step.lower and step.adapter is None else 0
    frozen = width * shape.weights + (0 if step.adapter is None else 4 * trained)
    if step.fp8:
        frozen += (FP8_BYTES - width) * shape.layers * shape.layer
    return Prediction(
        weights=(frozen + copies) // parts + (width * gathered(shape) if parts > 1 else 0),
        optimizer=moments // parts,
        gradients=(4 * trained + (width * trained if copies else 0)) // parts,
        activations=activations(shape, step),
        logits=logits(shape, step),
        accumulated_gradients=accumulated_gradients(shape, step),
    )


def accumulated_gradients(shape: Shape, step: Step) -> int:
    """What earlier micro-batches leave, in float32; DDP has its buckets from the first step on.

    FSDP2 holds gradients that it has not reduced yet whole on each rank, in the type in which it reduces them.
    """
    has_buckets = step.ranks > 1 and not step.sharded
    if step.micro_batches == 1 and not has_buckets:
        return 0
    return 4 * step.trained(shape) // (step.ranks if step.sharded and step.reduces_each else 1)


def fitted(shape: Shape, step: Step, recomputes: bool | Literal["auto"]) -> Step:
    """The step in the fastest way that the device has the memory for, or in the one that takes least.

    Args:
        shape: the model.
        step: its largest step; if its device is unknown, gradients are reduced after each micro-batch.
        recomputes: whether activations are recomputed; "auto": only where the device is known not to have the memory.
    """
    reduced = (False, True) if step.sharded and step.ranks > 1 and step.micro_batches > 1 else (False,)
    recomputed = (False, True) if recomputes == "auto" and step.device else (recomputes is True,)
    ways = [replace(step, reduces_each=each, checkpointing=again) for again in recomputed for each in reduced]
    if not step.one_host:
        ways.sort(key=lambda way: way.reduces_each)
    return next((way for way in ways if predict(shape, way).fits(step.device)), ways[-1])


def gathered(shape: Shape) -> int:
    """Weights that FSDP holds whole at a time: a layer, the next one, and what is in no layer."""
    return 2 * shape.layer + shape.weights - shape.layers * shape.layer


def activations(shape: Shape, step: Step) -> int:
    """What the layers keep for the backward pass."""
    width = 2 if step.lower else 4
    kept = kept_by_layer(shape, step.adapter) + (2 * shape.hidden if has_wide_inputs(shape, step) else 0)
    layer = int(width * step.tokens * kept * (1 if step.compiled else AS_THEY_ARE))
    if step.checkpointing:
        return shape.layers * width * step.tokens * shape.hidden + layer
    return shape.layers * layer


def has_wide_inputs(shape: Shape, step: Step) -> bool:
    """Whether the inputs of the layers, and the sum before the second norm, are in float32 while all else is in 16 bits."""
    autocast = step.lower and not step.sharded and (step.adapter is not None or step.ranks > 1)
    return autocast and shape.family in NORMED_EMBEDDINGS


def kept_by_layer(shape: Shape, adapter: Adapter | None) -> int:
    """Numbers that a compiled layer keeps of a token: its input, queries, keys, values, what attention made, the sum of both
    before the second norm, and the inner tensors before they are activated; and what trained matrices have taken.
    """
    targets = frozenset() if adapter is None else adapter.targets
    full = adapter is None
    kept = 2 * shape.hidden + round(2 * (shape.queries + shape.kept_keys) * shape.head * shape.heads / shape.queries)
    kept += shape.inner * (2 if shape.family in GATED else 1)
    kept += shape.hidden if full or targets & INPUTS_OF_ATTENTION else 0
    kept += shape.hidden if full or targets & INPUTS_OF_INNER else 0
    kept += shape.inner if full or targets & WIDEST_INPUTS else 0
    if adapter is not None and adapter.dropout:
        kept += sum(shape.inner if name in WIDEST_INPUTS else shape.hidden for name in targets)
    return kept


def logits(shape: Shape, step: Step) -> int:
    """A chunk of the output layer, and the gradient of that layer if it is trained."""
    room = max(LEAST_CHUNK_BYTES, step.device // CHUNK_SHARE)
    rows = min(step.supervised, max(LEAST_CHUNK_ROWS, room // (CHUNK_LOGIT_BYTES * shape.vocabulary)))
    width = LOGIT_BYTES if step.lower else 2 * LOGIT_BYTES
    learns = shape.vocabulary * shape.hidden * 6 if step.adapter is None else 0
    return rows * shape.vocabulary * width + learns
