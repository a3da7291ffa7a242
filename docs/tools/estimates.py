"""Put the tables that are predicted into docs/performance.md.

    python docs/tools/estimates.py docs/performance.md

They are computed by what `finetune estimate` computes with: no GPU is needed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_trainer import memory, speed

Rows = Iterator[list[str]]

LLAMA = {"model_type": "llama", "vocab_size": 128256, "head_dim": 128, "num_key_value_heads": 8, "tie_word_embeddings": False}
SIZES = {
    "1.2B": LLAMA | {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
                     "head_dim": 64, "tie_word_embeddings": True},
    "3.2B": LLAMA | {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
                     "tie_word_embeddings": True},
    "8B": LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
    "70B": LLAMA | {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
}  # fmt: skip
"""Llama 3's shapes."""
ADAPTER = memory.Adapter(8, frozenset({"q_proj", "v_proj"}), dropout=False)
TOKENS, SUPERVISED, SEEN = 8192, 0.43, 129.0
"""Of a step of a GPU, as in the runs that were measured: rows of 190 tokens on average."""
GPUS = ("h100", "h200")
MOST = 64
"""GPUs that are tried for a model."""
NODES, GPUS_OF_NODE, CORES_OF_NODE = 100, 8, 32
NETWORKS = (25, 100, 400)
"""Gbit/s of a node."""


def step(method: str, ranks: int, *, sharded: bool, device: speed.Device, tokens: int = TOKENS) -> memory.Step:
    """A step of a GPU."""
    adapter = ADAPTER if method == "LoRA" else None
    return memory.Step(tokens, round(SUPERVISED * tokens), adapter, ranks=ranks, sharded=sharded, device=device.memory)


def fitting(shape: memory.Shape, made: memory.Step) -> tuple[memory.Step, memory.Prediction] | None:
    """The step, with activations recomputed if they have to be, and its memory; None: it does not fit."""
    tried = memory.fitted(shape, made, "auto")
    predicted = memory.predict(shape, tried)
    return (tried, predicted) if predicted.fits(made.device) else None


def smallest(shape: memory.Shape, method: str, device: speed.Device) -> tuple[memory.Step, memory.Prediction] | None:
    """The step on the fewest GPUs that have the memory: one, or so many that shards fit."""
    ranks = 1
    while ranks <= MOST:
        if found := fitting(shape, step(method, ranks, sharded=ranks > 1, device=device)):
            return found
        ranks *= 2
    return None


def memory_rows() -> Rows:
    """Where DDP ends."""
    yield ["Model", "Method", *(f"{speed.GPUS[name].name.removeprefix('NVIDIA ')}" for name in GPUS)]
    for size, config in SIZES.items():
        shape = memory.Shape.of(config)
        for method in ("LoRA", "full"):
            yield [size, method, *(_fewest(smallest(shape, method, speed.GPUS[name])) for name in GPUS)]


def _fewest(found: tuple[memory.Step, memory.Prediction] | None) -> str:
    if found is None:
        return f"more than {MOST} GPUs"
    made, predicted = found
    how = "DDP: one GPU has room" if made.ranks == 1 else f"FSDP on {made.ranks} GPUs or more"
    return f"{how}, {predicted.total / memory.GIB:.0f} GiB{', recomputed' if made.checkpointing else ''}"


def network_rows() -> Rows:
    """What a hundred nodes exchange, and what part of their time they compute."""
    yield ["Run", "Tokens a GPU and step", "GB a step", *(f"{rate} Gbit/s" for rate in NETWORKS)]
    device, ranks = speed.GPUS["h100"], NODES * GPUS_OF_NODE
    for size, method, sharded, tokens in (
        ("8B", "LoRA", False, 8192),
        ("1.2B", "full", False, 8192),
        ("1.2B", "full", False, 32768),
        ("8B", "full", True, 8192),
        ("8B", "full", True, 32768),
        ("70B", "LoRA", True, 8192),
    ):
        shape = memory.Shape.of(SIZES[size])
        found = fitting(shape, step(method, ranks, sharded=sharded, device=device, tokens=tokens))
        name = f"{size} {method}, {'FSDP' if sharded else 'DDP'}"
        if found is None:
            yield [name, f"{tokens:,}", "does not fit", *("" for _ in NETWORKS)]
            continue
        yield [name, f"{tokens:,}", *_exchange(shape, speed.Work(found[0], SEEN), device, NETWORKS)]


def cpu_rows() -> Rows:
    """The same on CPUs."""
    yield ["Run", "Tokens a worker and step", "GB a step", "10 Gbit/s", "25 Gbit/s"]
    for size, method in (("1.2B", "LoRA"), ("1.2B", "full"), ("8B", "LoRA")):
        adapter = ADAPTER if method == "LoRA" else None
        made = memory.Step(2048, 880, adapter, lower=False, compiled=False, ranks=NODES, device=0)
        work = speed.Work(made, SEEN)
        yield [
            f"{size} {method}, DDP",
            "2,048",
            *_exchange(memory.Shape.of(SIZES[size]), work, speed.cpu(CORES_OF_NODE), (10, 25)),
        ]


def _exchange(shape: memory.Shape, work: speed.Work, device: speed.Device, networks: tuple[int, ...]) -> list[str]:
    """Gigabytes of a step, and for each network the part of the time that is computed, and tokens per second of all."""
    cells = [f"{speed.exchanged_bytes(shape, work.step) / 1e9:.2f}"]
    for rate in networks:
        taken = speed.predict(shape, work, device, rate * 1e9 / 8)
        share = 1 - taken.exchange / taken.total
        cells.append(f"{share:.0%}, {work.step.ranks * work.step.tokens / taken.total:,.0f} tokens/s")
    return cells


def table(rows: Rows) -> str:
    """A Markdown table."""
    head, *rest = rows
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (head, ["---"] * len(head), *rest))


TABLES = {"memory": memory_rows, "network": network_rows, "cpu": cpu_rows}


def with_tables(text: str) -> str:
    """The page with its tables."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- estimates: {name} -->\n", f"<!-- end of {name} -->\n"
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{table(rows())}{end}{rest.partition(end)[2]}"
    return text


if __name__ == "__main__":
    page = Path(sys.argv[1])
    page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
