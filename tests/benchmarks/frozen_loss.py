"""What frozen weights in 8 bits cost: a real model, finetuned with and without, and its loss on rows that it has not learned.

    python -m tests.benchmarks.frozen_loss MODEL ROWS [STEPS]

MODEL is a folder, ROWS a file of rows, 30 % of which are held out. For each of three seeds and both types a line of JSON with the
held-out loss before the first step and after the last one; then how far the means are apart. Without a GPU that multiplies such
numbers, they are emulated in float32.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from tests.benchmarks.gpu_step import about
from tests.support.engines import emulated_product

from finetune_trainer.checkpoint.checkpointer import Checkpointer, Start
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.modeling import frozen, load
from finetune_trainer.runtime import devices, distributed
from finetune_trainer.tracking.tracker import Tracker
from finetune_trainer.training import compiling, setup
from finetune_trainer.training.evaluation import evaluate
from finetune_trainer.training.loop import TrainingLoop
from finetune_trainer.training.seeding import seed_everything

DEVICE = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
EMULATED = devices.capability(DEVICE) < frozen.CAPABILITY
SEEDS = (1, 2, 3)
STEPS = 60


def configure(model: str, rows: Path, folder: Path, kind: str | None, seed: int, steps: int) -> TrainerConfig:
    """The configuration of a run."""
    lora = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.0}
    return TrainerConfig.model_validate({
        "General": {"base_model": model, "output_dir": str(folder), "lora_config": lora, "frozen_dtype": kind},
        "Dataset": {"train_file": rows.name, "validation_split_percentage": 30},
        "Training": {"batch_size": 8, "max_train_steps": steps, "learning_rate": 1e-3, "device": "GPU", "mixed_precision": "bf16",
                     "resources_per_worker": {"CPU": 2, "GPU": 1}, "logging_steps": 1000, "seed": seed},
    })  # fmt: skip


def measure(model: str, rows: Path, kind: str | None, seed: int, steps: int) -> dict[str, Any]:
    """Finetune, and look at the held-out loss before and after."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        config = configure(model, rows, Path(folder), kind, seed, steps)
        run = Run(config=config, output_dir=Path(folder), dataset_dir=rows.parent.resolve())
        run.logs.mkdir()
        worker = distributed.Worker(DEVICE)
        seed_everything(seed)
        data = setup.load_data(run, worker, load.load_tokenizer(run))
        dtype = torch.bfloat16 if DEVICE.type == "cuda" else torch.float32
        engine = setup.build_engine(run, worker, data, dtype, emulated_product if EMULATED else frozen.scaled_product)
        compiling.compile_layers(engine)
        losses = [evaluate(engine, bool)]
        tracker = Tracker(run, writes=True)
        tracker.start(distributed.describe(worker, "DDP", str(dtype)), engine.total_steps, None, 0)
        TrainingLoop(engine, tracker, Checkpointer(engine), None, bool).run(Start())
        losses.append(evaluate(engine, bool))
    before, after = (found.loss if found is not None else float("nan") for found in losses)
    return {"seed": seed, "frozen": kind or str(dtype).removeprefix("torch."), "before": round(before, 5),
            "after": round(after, 5), "held_out": len(data.eval_rows), "seconds": round(time.perf_counter() - began)}  # fmt: skip


def main(model: str, rows: str, steps: str = str(STEPS)) -> None:
    """Measure all, and compare."""
    after: dict[str | None, list[float]] = {None: [], "fp8": []}
    for seed in SEEDS:
        for kind, seen in after.items():
            found = measure(model, Path(rows), kind, seed, int(steps))
            seen.append(found["after"])
            print(json.dumps({**found, "emulated": EMULATED, **about()}), flush=True)
    print(json.dumps({"differs": round(mean(after["fp8"]) / mean(after[None]) - 1, 5)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
