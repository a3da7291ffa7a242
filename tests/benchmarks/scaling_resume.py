"""A checkpoint of FSDP2 fits another number of GPUs: losses of runs that go on with fewer or more, beside undisturbed ones.

    python -m tests.benchmarks.scaling_resume RESULTS.json [SHAPE [WAY]]

The llama of 1.2B (or another SHAPE of `gpu_shapes`) is trained in full and in float32, on all GPUs, then half of them, then
one; and the other way; or only one WAY, such as 1-2-4. For each leg the losses so far, how far they are from the undisturbed
run's, and the time. Each is on record as soon as it is known.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.gpu_shapes import configure, make_model, read_losses, write_rows
from tests.support import ranks

BATCH, STEPS, MOST = 16, 9, 4
"""Rows of a step, steps, and GPUs at most."""
BOUND = 1e-4


def entry(model: Path, work: Path, name: str, began: int, stop: int | None) -> dict[str, Any]:
    """A run that has begun with so many ranks."""
    config = configure(model, work / name, {"method": "full", "mode": "FSDP", "steps": STEPS})
    config["Training"].update(batch_size=BATCH // began, mixed_precision="no")
    return {"config": config, "data": str(work), "stop": stop, "name": name}


def go_on(model: Path, work: Path, name: str, sizes: list[int]) -> dict[str, Any]:
    """Take a run over some numbers of ranks."""
    legs: list[dict[str, Any]] = []
    whole = f"whole-{sizes[0]}"
    for number, size in enumerate(sizes):
        stop = (number + 1) * STEPS // len(sizes) - 1 if number + 1 < len(sizes) else None
        runs = [entry(model, work, name, sizes[0], stop)]
        runs += [entry(model, work, whole, sizes[0], None)] if number == 0 else []
        began = time.monotonic()
        ranks.start(work / f"{name}-{number}", runs, size)
        losses, expected = read_losses(work / name), read_losses(work / whole)
        apart = [abs(loss - other) for loss, other in zip(losses, expected, strict=False)]
        legs.append({"gpus": size, "steps": len(losses), "differsBy": max(apart), "seconds": round(time.monotonic() - began)})
        print(name, legs[-1], flush=True)
    return {"legs": legs, "losses": losses, "undisturbed": expected, "passes": len(losses) == STEPS and max(apart) <= BOUND}


def main(results: Path, shape: str = "llama-1b", only: str = "") -> None:
    """Take both ways, or the one that is asked for, and put them on record."""
    import torch

    most = min(MOST, torch.cuda.device_count()) or 2
    sizes = sorted({1, most // 2, most})
    about = {"torch": torch.__version__, "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none"}
    found: dict[str, Any] = {**about, "shape": shape, "rowsPerStep": BATCH, "runs": {}}
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        model, work = Path(memory) / "model", Path(tempfile.mkdtemp(dir=memory))
        make_model(shape, model)
        write_rows(work / "rows.jsonl")
        for way in [[*map(int, only.split("-"))]] if only else (sizes[::-1], sizes):
            name = "-".join(map(str, way))
            try:
                found["runs"][name] = go_on(model, work, name, way)
            except AssertionError as error:
                found["runs"][name] = {"error": str(error)[-3000:]}
            results.write_text(json.dumps(found, indent=1) + "\n")
            print(name, found["runs"][name].get("passes"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
