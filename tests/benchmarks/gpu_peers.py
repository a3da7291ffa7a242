"""Other trainers beside this one, on the same GPU, with the same rows and the same number of tokens in a step.

    python -m tests.benchmarks.gpu_peers PEER:SHAPE:ROWS:TOKENS…

as in trl-flash:8b-lora:logn:8192; the peer `all` stands for each in turn. What follows the peer is a spec of `gpu_step`:

    product    this trainer, as `gpu_step` runs it; its spec may end with switches
    hf         Trainer of transformers: rows padded to the longest of a batch, batches grouped by length, torch's SDPA
    hf-flat    the same with DataCollatorWithFlattening: rows in a line, and attention that keeps them apart
    trl        SFTTrainer of TRL with best-fit packing, and torch's SDPA
    trl-flash  the same with attention that keeps the rows apart

All peers have bf16, AdamW in one kernel, and Liger's kernels. What keeps rows apart is torch's kernel of flash attention, as this
trainer calls it: the package flash-attn has no wheel that could be brought to a machine without network. Each peer has a process
of its own, which tries some ways to split a step into batches, by which it is warm, too, and measures the fastest one again.
requirements/peers.in has the versions. A line of JSON for each is printed at once.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import groupby

from finetune_trainer.launch.allocator import set_up_memory

PEERS = ("product", "hf", "hf-flat", "trl", "trl-flash")
LIMIT = 240
"""Seconds for all specs of a peer: one that hangs takes no time from the others."""


def expand(specs: list[str]) -> list[tuple[str, list[str]]]:
    """The peers, each with its specs."""
    pairs = [spec.split(":", 1) for spec in specs]
    named = [(peer, rest) for which, rest in pairs for peer in (PEERS if which == "all" else [which])]
    unknown = sorted({peer for peer, _ in named} - set(PEERS))
    if unknown:
        sys.exit(f"There is no peer {', '.join(unknown)}; the peers are {', '.join(PEERS)}.")
    ordered = sorted(named, key=lambda pair: PEERS.index(pair[0]))
    return [(peer, [rest for _, rest in group]) for peer, group in groupby(ordered, key=lambda pair: pair[0])]


def run(peer: str, specs: list[str]) -> None:
    """Run a peer in a process of its own, which prints what it has found."""
    module = ["tests.benchmarks.gpu_step"] if peer == "product" else ["tests.benchmarks.gpu_peer", peer]
    try:
        code = subprocess.run([sys.executable, "-m", *module, *specs], timeout=LIMIT * len(specs), check=False).returncode
        problem = f"it ended with code {code}" if code else None
    except subprocess.TimeoutExpired:
        problem = f"it did not end within {LIMIT * len(specs)} seconds"
    if problem:
        print(json.dumps({"peer": peer, "specs": specs, "error": problem}), flush=True)


def main(specs: list[str]) -> None:
    """Run one peer after the other."""
    set_up_memory()
    os.environ["PYTHONUNBUFFERED"] = "1"
    # Trainer would spread the batch over all GPUs that it sees.
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")
    for peer, chosen in expand(specs):
        run(peer, chosen)


if __name__ == "__main__":
    main(sys.argv[1:])
