"""Who is measured by `cpu_bench`, each in a process of its own:

    python -m tests.benchmarks.cpu_contestants product|hf|trl|reference

`product` is this trainer: its own engine and loop, with the files that it writes. `hf` is the HF Trainer at its best: rows of
similar length share a batch, which is padded to the longest of them, with fused AdamW. `trl` is TRL's SFTTrainer, which packs
rows in lines of 512 tokens. `reference` is llm-on-ray's way: the HF Trainer on rows that are padded to 512, with torch's AdamW.
"""

from __future__ import annotations

import importlib.metadata
import os
import sys
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from tests.benchmarks.cpu_rows import (
    BF16_VARIABLE,
    LONGEST,
    LORA,
    MODEL_VARIABLE,
    RATE,
    Clock,
    Row,
    claim_stdout,
    labels,
    load_model,
    make_rows,
)

STEPS = 100_000
"""More than are ever asked for."""
PACKAGES = ("torch", "transformers", "peft", "accelerate", "trl")


def run_product(clock: Clock, scratch: Path, law: str) -> None:
    """Take the steps of this trainer."""
    clock.wait()
    while clock.order:
        _train_product(clock, Path(tempfile.mkdtemp(dir=scratch)), law)


def _train_product(clock: Clock, folder: Path, law: str) -> None:
    """Train with one size of batches until another one is asked for."""
    from finetune_trainer.checkpoint.checkpointer import Checkpointer, Start
    from finetune_trainer.config.run import Run
    from finetune_trainer.config.schema import TrainerConfig
    from finetune_trainer.runtime import distributed
    from finetune_trainer.tracking.tracker import Tracker
    from finetune_trainer.training.compiling import compile_layers
    from finetune_trainer.training.loop import TrainingLoop
    from finetune_trainer.training.precision import choose_dtype
    from finetune_trainer.training.setup import build_engine

    config = TrainerConfig.model_validate(
        {
            "General": {"base_model": os.environ[MODEL_VARIABLE], "output_dir": str(folder), "lora_config": LORA},
            "Dataset": {"train_file": "rows.jsonl", "validation_split_percentage": 0},
            "Training": {
                "batch_size": clock.batch, "max_train_steps": STEPS, "learning_rate": RATE, "mixed_precision": "bf16",
                "logging_steps": 1, "resources_per_worker": {"CPU": os.cpu_count()},
            },
        }
    )  # fmt: skip
    run = Run(config=config, output_dir=folder)
    run.logs.mkdir(parents=True)
    import torch

    worker = distributed.single_process(config.training)
    compute = choose_dtype(run, worker)
    engine = build_engine(run, worker, product_rows(law), getattr(torch, compute.dtype))
    compile_layers(engine)
    tracker = Tracker(run, writes=True)
    tracker.start(distributed.describe(worker, "DDP", compute.dtype), engine.total_steps, None, 0)
    lengths, plan = engine.data.train.lengths, engine.plan(0)

    def report(record: dict[str, Any]) -> None:
        rows = engine.data.train_rows[np.concatenate([share for micro in next(plan).micro for share in micro])]
        if clock.step(int(lengths[rows].sum()), record["loss"]):
            raise Done

    try:
        TrainingLoop(engine, tracker, Checkpointer(engine), report, bool).run(Start())
    except Done:
        tracker.close()


class Done(Exception):  # noqa: N818 - nothing has failed
    """Other batches are wanted."""


def product_rows(law: str) -> Any:
    """The rows as the trainer has them once it has read a file."""
    from finetune_trainer.data.examples import Examples
    from finetune_trainer.data.splits import Data

    made = make_rows(vocabulary(), law)
    sizes = np.array([len(row.ids) for row in made])
    tokens = np.concatenate([row.ids for row in made]).astype(np.int32)
    starts, first = np.concatenate([[0], np.cumsum(sizes)]), np.array([row.first for row in made])
    rows = Examples(tokens, starts, first, sizes, np.arange(1, len(made) + 1), "rows.jsonl", int(tokens.max()))
    return Data(rows, np.arange(len(made)), rows, np.arange(0), 0)


def vocabulary() -> int:
    """Tokens that the model knows."""
    from transformers import AutoConfig

    size: int = AutoConfig.from_pretrained(os.environ[MODEL_VARIABLE]).vocab_size
    return size


def run_peer(name: str, clock: Clock, scratch: Path, law: str) -> None:
    """Take the steps of the HF Trainer, or of TRL's."""
    import torch

    faster = os.environ.get(BF16_VARIABLE) == "1"
    model = load_model(torch.bfloat16 if faster else torch.float32)
    made = make_rows(vocabulary(), law)
    clock.wait()
    while clock.order:
        options: dict[str, Any] = {
            "output_dir": str(scratch), "per_device_train_batch_size": clock.batch, "max_steps": STEPS, "use_cpu": True,
            "bf16": faster, "learning_rate": RATE, "save_strategy": "no", "report_to": [], "logging_steps": STEPS,
            "disable_tqdm": True, "optim": "adamw_torch" if name == "reference" else "adamw_torch_fused",
            "remove_unused_columns": False, "dataloader_num_workers": 0,
        }  # fmt: skip
        trainer = _trl(model, made, options) if name == "trl" else _hf(name, model, made, options)
        counter = Counter(trainer.data_collator, _mean(made) if name == "reference" else None)
        trainer.data_collator = counter
        trainer.add_callback(_callback(clock, counter))
        trainer.train()


def _mean(made: list[Row]) -> float:
    return sum(len(row.ids) for row in made) / len(made)


def _hf(name: str, model: Any, made: list[Row], options: dict[str, Any]) -> Any:
    """The HF Trainer."""
    import torch
    from transformers import Trainer, TrainingArguments

    def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = LONGEST if name == "reference" else -(-max(len(row["input_ids"]) for row in rows) // 8) * 8
        fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
        return {
            key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows]) for key, value in fill.items()
        }

    rows = [{"input_ids": row.ids, "labels": labels(row), "attention_mask": [1] * len(row.ids)} for row in made]
    sampling = "random" if name == "reference" else "group_by_length"
    return Trainer(model, TrainingArguments(**options, train_sampling_strategy=sampling), collate, train_dataset=rows)


def _trl(model: Any, made: list[Row], options: dict[str, Any]) -> Any:
    """TRL's trainer, with packed rows and the loss that it chooses, on responses only."""
    import datasets
    from transformers import AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    rows = [{"input_ids": row.ids, "completion_mask": [0] * row.first + [1] * (len(row.ids) - row.first)} for row in made]
    config = SFTConfig(**options, packing=True, max_length=LONGEST, gradient_checkpointing=False)
    tokenizer = AutoTokenizer.from_pretrained(os.environ[MODEL_VARIABLE])
    return SFTTrainer(model, config, train_dataset=datasets.Dataset.from_list(rows), processing_class=tokenizer)


class Counter:
    """A collator that remembers how many tokens each batch has. The trainer may fetch a batch before its step."""

    def __init__(self, collate: Any, mean: float | None) -> None:
        self._collate = collate
        self._mean = mean
        """Tokens of a row to count instead: where each row is padded to one length, its own does not matter."""
        self.tokens: list[int] = []

    def __call__(self, rows: list[dict[str, Any]]) -> Any:
        made = self._collate(rows)
        mask = made.get("attention_mask")
        found = made["input_ids"].numel() if mask is None else int(mask.sum())
        self.tokens.append(found if self._mean is None else round(self._mean * len(rows)))
        return made


def _callback(clock: Clock, counter: Counter) -> Any:
    """Tells the clock of each step."""
    from transformers import TrainerCallback

    numbers = count()

    class Tell(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, _: Any, __: Any, control: Any, **___: Any) -> None:
            control.should_training_stop = clock.step(counter.tokens[next(numbers)])

    return Tell()


def version_of(package: str) -> str | None:
    """The version of a package that is installed here."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def main(name: str, law: str) -> None:
    """Be this contestant until standard input ends."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    clock = Clock(claim_stdout())
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as scratch:
        clock.answer(versions={name: found for name in PACKAGES if (found := version_of(name))})
        if name == "product":
            run_product(clock, Path(scratch), law)
        else:
            run_peer(name, clock, Path(scratch), law)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "logn")
