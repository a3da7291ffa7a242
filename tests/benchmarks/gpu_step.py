"""Optimizer steps of the trainer's own loop on one GPU, with random weights and rows in memory.

    python -m tests.benchmarks.gpu_step SPEC…

A SPEC is SHAPE:ROWS:TOKENS[:SWITCH+SWITCH…], as in 8b-lora:logn:8192:eager+early or bloom-1b-full:logn:8192; a switch takes
one change back. For each a line of JSON: tokens per second, the share of the dense bf16 peak of an H100 or H200 (MFU), peak
memory, how long it took to compile and to take the first step, whether rows were packed, and what the trainer warned of, as when
attention runs row by row. It needs no network, no Ray and no disk. Without a GPU it runs, too, in float32, for the shapes
tiny-lora and tiny-full.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import os
import random
import sys
import tempfile
import time
import traceback
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.commit import commit
from tests.benchmarks.gpu_shapes import SHAPES as FAMILIES

from finetune_trainer.launch.allocator import VARIABLES, set_up_memory
from finetune_trainer.memory import Shape

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name.rpartition("-")[0], sizes) for name, sizes in FAMILIES.items()},
    "8b": ("llama", FAMILIES["llama-8b"]),
    "1b": ("llama", FAMILIES["llama-1b"]),
    "tiny": ("llama", {"vocab_size": 1000, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
                       "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192,
                       "tie_word_embeddings": False}),
}  # fmt: skip
"""By name, each with its family; a spec adds -lora or -full."""
LAWS = {"logn": 190, "held": 475, "dense": 4096}
"""Laws of the rows' lengths, with their means: lognormal as in chats, uniform from 50 to 900, and all of one length."""
WARM, STEPS = 5, 12
PEAK = 989e12
"""Dense bf16 operations per second of an H100 or H200."""
SWITCHES = {
    "eager": "layers run as they are",
    "early": "the loss is read at once",
    "unfused": "AdamW updates weight by weight",
    "casts": "PEFT casts the inputs of adapters",
    "slope": "the gradient of the logits is not compiled",
    "chunks": "chunks of the output layer are as small as they may be",
    "drop": "LoRA has dropout 0.1",
    "ckpt": "gradient checkpointing",
    "auto": "gradient checkpointing where the prediction says that memory forces it",
    "autocast": "full finetuning has weights in float32 and autocast instead of masters",
    "budget": "steps are made by tokens, not by rows",
    "fp8": "the frozen weights are held in 8 bits",
    "fp32": "all in float32, to compare losses",
    "profile": "print the kernels that take longest, of two further steps",
}


def lengths(law: str, count: int) -> list[int]:
    """Tokens of the rows."""
    chance = random.Random(0 if law == "logn" else 11)
    if law == "logn":
        return [max(24, min(512, int(chance.lognormvariate(5.05, 0.62)))) for _ in range(count)]
    return [chance.randint(50, 900) if law == "held" else 4096 for _ in range(count)]


def shape_of(name: str) -> Shape:
    """What of a shape decides its memory and its time."""
    from transformers import CONFIG_MAPPING

    family, sizes = SHAPES[name]
    return Shape.of(CONFIG_MAPPING[family](**sizes).to_dict())


def configure(shape: str, law: str, tokens: int, switches: set[str], folder: Path) -> dict[str, Any]:
    """The configuration of the run."""
    import torch

    size, gpu = shape.rpartition("-")[0], torch.cuda.is_available()
    recomputes = "auto" if "auto" in switches else "ckpt" in switches
    lora = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.1 if "drop" in switches else 0.0}
    return {
        "General": {"base_model": size, "output_dir": str(folder), "enable_gradient_checkpointing": recomputes,
                    "frozen_dtype": "fp8" if "fp8" in switches else None,
                    "lora_config": lora if shape.endswith("-lora") else None},
        "Dataset": {"train_file": "rows.jsonl", "validation_split_percentage": 0},
        "Training": {"batch_size": max(1, round(tokens / LAWS[law])), "tokens_per_step": tokens if "budget" in switches else None,
                     "max_train_steps": WARM + STEPS + 1, "learning_rate": 1e-4,
                     "mixed_precision": "no" if "fp32" in switches else "bf16", "logging_steps": 1,
                     "compile": "auto" if "eager" not in switches else False,
                     "device": "GPU" if gpu else "CPU", "resources_per_worker": {"CPU": 4, "GPU": int(gpu)}},
    }  # fmt: skip


def make_rows(law: str, count: int, vocabulary: int) -> Any:
    """Rows of random tokens; a prompt is 57 % of a row."""
    from finetune_trainer.data.examples import Examples
    from finetune_trainer.data.splits import Data

    sizes = np.array(lengths(law, count))
    starts = np.concatenate([[0], np.cumsum(sizes)])
    ids = np.random.default_rng(1).integers(10, vocabulary, int(starts[-1]), dtype=np.int32)
    first = np.maximum((0.57 * sizes).astype(np.int64), 1)
    rows = Examples(ids, starts, first, sizes, np.arange(1, count + 1), "rows.jsonl", int(ids.max()))
    return Data(rows, np.arange(count), rows, np.arange(0), 0)


def make_engine(config: dict[str, Any], shape: str, law: str, switches: set[str], worker: Any = None) -> Any:
    """The engine of the trainer, whose model has random weights that were made on the device, the same on every rank.

    Args:
        config: of the run.
        shape: of the model.
        law: of the lengths of rows.
        switches: what is taken back.
        worker: one of several; None: the only one.
    """
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.modeling import families, load
    from finetune_trainer.runtime import distributed, one_reader
    from finetune_trainer.training import setup

    family, sizes = SHAPES[shape.rpartition("-")[0]]
    about = CONFIG_MAPPING[family](**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    parsed = TrainerConfig.model_validate(config)
    worker = distributed.single_process(parsed.training) if worker is None else worker

    def load_base(_: Run, dtype: torch.dtype, **__: Any) -> Any:
        torch.manual_seed(0)
        with torch.device(worker.device):
            attention = families.family_of(family).attention
            return AutoModelForCausalLM.from_config(about, dtype=dtype, attn_implementation=attention)

    run = Run(config=parsed, output_dir=Path(parsed.general.output_dir))
    run.logs.mkdir(parents=True, exist_ok=True)
    data = make_rows(law, parsed.training.batch_size * (WARM + STEPS + 4), about.vocab_size)
    dtype = torch.float32 if worker.device.type == "cpu" or "fp32" in switches else torch.bfloat16
    plain = setup.needs_masters, load.load_base, one_reader.load_on_rank0
    load.load_base = load_base
    one_reader.load_on_rank0 = lambda run, _, dtype: load.load_model(run, dtype)
    if "autocast" in switches:
        setup.needs_masters = lambda *_: False
    engine = setup.build_engine(run, worker, data, dtype)
    setup.needs_masters, load.load_base, one_reader.load_on_rank0 = plain
    free()
    return take_back(engine, switches)


def free() -> None:
    """Give back the GPU's memory that nothing needs."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def take_back(engine: Any, switches: set[str]) -> Any:
    """Undo what the switches name."""
    if "unfused" in switches:
        for group in engine.optimizer.param_groups:
            group["fused"] = None
    for part in engine.model.modules():
        if "casts" in switches and hasattr(part, "cast_input_dtype_enabled"):
            part.cast_input_dtype_enabled = True
    if "chunks" in switches:
        engine.loss.chunk_bytes = 0
    return dataclasses.replace(engine, reads_late=engine.reads_late and "early" not in switches)


def train(engine: Any, switches: set[str]) -> dict[str, Any]:
    """Compile, take the steps, and measure."""
    import torch

    from finetune_trainer.checkpoint.checkpointer import Checkpointer, Start
    from finetune_trainer.modeling.head_loss import plain_slope
    from finetune_trainer.runtime import distributed
    from finetune_trainer.tracking.tracker import Tracker
    from finetune_trainer.training.compiling import compile_layers
    from finetune_trainer.training.loop import TrainingLoop

    times, losses = [time.perf_counter()], []
    compile_layers(engine)
    compiled = time.perf_counter()
    if "slope" in switches:
        engine.loss.slope = plain_slope
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()

    def report(record: dict[str, Any]) -> None:
        times.append(time.perf_counter())
        losses.append(record["loss"])

    tracker = Tracker(engine.run, writes=engine.worker.is_rank0)
    strategy = engine.run.config.training.strategy
    tracker.start(distributed.describe(engine.worker, strategy, "bfloat16"), engine.total_steps, None, 0)
    TrainingLoop(engine, tracker, Checkpointer(engine), report, bool).run(Start())
    engine.run.logs.joinpath("progress.json").unlink(missing_ok=True)
    # A record comes late, when the next step is on its way, but not that of the last step, which does not count.
    counted = times[WARM : WARM + STEPS + 1]
    seconds = [after - before for before, after in pairwise(counted)]
    return {"compile_s": round(compiled - times[0], 1), "first_step_s": round(times[1] - compiled, 2), "seconds": seconds,
            "loss": [round(loss, 6) for loss in losses[::4]]}  # fmt: skip


def memory() -> dict[str, Any]:
    """Peak memory, in GiB."""
    import torch

    if not torch.cuda.is_available():
        return {}
    stats = torch.cuda.memory_stats()
    peaks = {"allocated": "allocated_bytes.all.peak", "reserved": "reserved_bytes.all.peak"}
    return {f"{name}_gib": round(stats[key] / 2**30, 1) for name, key in peaks.items()} | {"retries": stats["num_alloc_retries"]}


def operations(model: Any, shape: str, law: str) -> float:
    """Floating-point operations per token, of the weights and of attention; frozen weights get no gradient."""
    from torch import nn

    from finetune_trainer.modeling.frozen import FrozenLinear

    about = model.config
    looked_up = sum(part.weight.numel() for part in model.modules() if isinstance(part, nn.Embedding))
    held = sum(part.get_buffer("rounded").numel() for part in model.modules() if isinstance(part, FrozenLinear))
    matrices = sum(weight.numel() for weight in model.parameters()) - looked_up + held
    head = model.get_output_embeddings().weight
    matrices += head.numel() if head is model.get_input_embeddings().weight else 0
    sees = (LAWS[law] + 1) / 2
    return (4 if shape.endswith("-lora") else 6) * matrices + 12 * about.num_hidden_layers * about.hidden_size * sees


class Notes(logging.Handler):
    """What the trainer warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, once."""
        if record.getMessage() not in self.texts:
            self.texts.append(record.getMessage())


def cuts() -> dict[str, int]:
    """Why and how often torch has cut a layer in pieces that it compiled apart."""
    from torch._dynamo.utils import counters

    return {why.partition("\n")[0][:200]: count for why, count in counters["graph_break"].items()}


def show_kernels(engine: Any) -> None:
    """Print the kernels that take longest in two further steps."""
    import torch

    from finetune_trainer.training.optimizer_step import take_step

    plan = engine.plan(0)
    with torch.profiler.profile() as profile:
        for number in (1, 2):
            take_step(engine, number, next(plan)).finish()
    print(profile.key_averages().table(sort_by="self_cuda_time_total", row_limit=30, max_name_column_width=70), flush=True)


def measure(spec: str) -> dict[str, Any]:
    """What came of a SPEC."""
    import torch
    from torch._dynamo.utils import counters

    from finetune_trainer.modeling import attention

    counters.clear()
    shape, law, tokens, *rest = spec.split(":")
    switches = set(rest[0].split("+")) if rest else set()
    assert switches <= SWITCHES.keys(), f"the switches are {', '.join(SWITCHES)}"
    torch.compiler.reset()
    attention._tell.cache_clear()
    notes = Notes()
    logging.getLogger("finetune_trainer").addHandler(notes)
    with tempfile.TemporaryDirectory() as folder:
        config = configure(shape, law, int(tokens), switches, Path(folder))
        engine = make_engine(config, shape, law, switches)
        done = train(engine, switches)
        if "profile" in switches:
            show_kernels(engine)
    logging.getLogger("finetune_trainer").removeHandler(notes)
    return describe(engine, shape, law, done) | {"notes": notes.texts, "cuts": cuts()}


def describe(engine: Any, shape: str, law: str, done: dict[str, Any]) -> dict[str, Any]:
    """What came of the steps, in numbers: tokens and operations are those of all ranks."""
    seconds = done.pop("seconds")
    plan, sizes = engine.plan(0), engine.data.train.lengths
    taken = [sum(int(sizes[engine.data.train_rows[share]].sum()) for micro in step.micro for share in micro)
             for step, _ in zip(plan, range(WARM + STEPS), strict=False)]  # fmt: skip
    speed = sum(taken[WARM:]) / sum(seconds)
    share = speed * operations(engine.model, shape, law) / PEAK / engine.worker.size
    return {
        "tok_s": round(speed), "mfu": round(share, 3), **memory(), **done, "forecast": engine.forecast, "packed": engine.packed,
        "step_ms": round(1000 * sum(seconds) / len(seconds), 1), "tok_step": round(sum(taken[WARM:]) / len(seconds)),
        "steps_ms": [round(1000 * each) for each in seconds],
    }  # fmt: skip


def about() -> dict[str, str]:
    """The GPU, the libraries, and the commit."""
    import torch
    import transformers

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {"gpu": gpu, "torch": torch.__version__, "transformers": transformers.__version__,
            "allocator": " ".join(filter(None, map(os.environ.get, VARIABLES))), "commit": commit()}  # fmt: skip


def main(specs: list[str]) -> None:
    """Measure one after the other."""
    set_up_memory()

    for spec in specs:
        try:
            found = measure(spec)
        except Exception as error:  # noqa: BLE001 - the others are measured all the same
            traceback.print_exc()
            found = {"error": repr(error)[:300], **memory()}
        print(json.dumps({"spec": spec, **found, **about()}), flush=True)
        free()


if __name__ == "__main__":
    main(sys.argv[1:])
