"""Two GPUs of one host learn what one of them does with the same batch: DDP and FSDP, LoRA and full, fp32 and bf16.

    python -m tests.benchmarks.gpu_pair RESULTS.json

For each way the losses of all steps, how far they are apart, tokens per second and peak memory of rank 0.
"""

from __future__ import annotations

import json
import platform
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_shapes import configure, farthest, make_model, read_losses, write_rows
from tests.support import ranks

SHAPE = "llama-1b"
BATCH = 16
STEPS = 12


def entry(model: Path, work: Path, name: str, mode: str, size: int) -> dict[str, Any]:
    """A run of `name`, <method>-<precision>, whose step has BATCH rows on however many GPUs."""
    method, precision = name.split("-")
    config = configure(model, work / f"{name}-{mode}-{size}", {"method": method, "mode": mode, "steps": STEPS})
    if config["General"]["lora_config"] is not None:
        config["General"]["lora_config"] = config["General"]["lora_config"] | {"lora_dropout": 0.0}
    config["Training"].update(batch_size=BATCH // size, mixed_precision=precision)
    return {"config": config, "data": str(work), "stop": None, "name": None}


def describe(work: Path, name: str, one: Path, peak: int) -> dict[str, Any]:
    """What came of a run, beside that on one GPU."""
    losses, expected = read_losses(work / name), read_losses(one)
    progress = json.loads((work / name / "logs" / "progress.json").read_text())
    return {
        "losses": losses, "tokensPerSecond": progress["tokensPerSecond"], "peakGiB": round(peak / 2**30, 1),
        "evalLoss": progress.get("evalLoss"), "backend": progress["world"]["backend"],
        "differsFromOneBy": farthest(losses, expected),
    }  # fmt: skip


def peaks(folder: Path) -> list[int]:
    """Peak memory of rank 0 in each run."""
    lines = (folder / "rank-0.log").read_text().splitlines()
    return [json.loads(line)["peakBytes"] for line in lines if line.startswith('{"peakBytes"')]


def main(results: Path) -> None:
    """Train, compare, and put it on record."""
    import torch

    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        model, work = Path(memory) / "model", Path(tempfile.mkdtemp(dir=memory))
        make_model(SHAPE, model)
        write_rows(work / "rows.jsonl")
        names = [f"{method}-{precision}" for method in ("full", "lora") for precision in ("no", "bf16")]
        about = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, "python": platform.python_version()}
        found: dict[str, Any] = {**about, "shape": SHAPE, "rowsPerStep": BATCH, "runs": {}}
        ways = {size: [(name, mode) for name in names for mode in modes] for size, modes in ((1, ["DDP"]), (2, ["DDP", "FSDP"]))}
        for size, chosen in ways.items():
            ranks.start(work / f"ranks-{size}", [entry(model, work, name, mode, size) for name, mode in chosen], size)
            for (name, mode), peak in zip(chosen, peaks(work / f"ranks-{size}"), strict=True):
                run = f"{name}-{mode}-{size}"
                found["runs"][run] = describe(work, run, work / f"{name}-DDP-1", peak)
                print(run, found["runs"][run], flush=True)
                results.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
