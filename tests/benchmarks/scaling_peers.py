"""The same training with other tools, for `scaling`: the Trainer of transformers, and SFTTrainer of TRL, with DDP.

The rows are those of `gpu_step`, and a step has about as many tokens. Each tool is set as its users would set it for speed: fused
AdamW, bf16, Liger's kernels where they are installed, rows grouped by length, or packed by TRL.
"""

from __future__ import annotations

import importlib.util
import os
import tempfile
import time
from typing import TYPE_CHECKING, Any

from tests.benchmarks import gpu_step

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.benchmarks.scaling import Spec

ROWS_AT_ONCE = 11
"""Rows of a padded micro-batch: as many as fit a GPU of 80 GB for 8B with LoRA, a quarter of a step."""
PACKED = 4096
"""Tokens of a line that TRL packs."""
MULTIPLE = 8
"""Lines are padded to a multiple of this, as tensor cores like it."""


def measure(spec: Spec) -> dict[str, Any]:
    """What came of it. A collective."""
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    with tempfile.TemporaryDirectory() as folder:
        trainer, counter = {"hf": plain, "trl": packing}[spec.tool](spec, folder)
        clock = make_clock()
        trainer.add_callback(clock)
        trainer.train()
    steps = trainer.args.gradient_accumulation_steps
    mine = [counter.seen[steps * gpu_step.WARM : steps * (gpu_step.WARM + gpu_step.STEPS)], gpu_step.memory()]
    everyone = [mine]
    if dist.is_initialized():
        everyone = [mine] * spec.gpus
        dist.all_gather_object(everyone, mine)
    seconds, tokens = clock.ended - clock.began, sum(sum(seen) for seen, _ in everyone)
    peaks = {name: max(memory[name] for _, memory in everyone) for name in everyone[0][1]}
    return {"tok_s": round(tokens / seconds), **peaks, "step_ms": round(1000 * seconds / gpu_step.STEPS, 1),
            "tok_step": round(tokens / gpu_step.STEPS), "liger": has("liger_kernel")}  # fmt: skip


def has(package: str) -> bool:
    """Whether a package is installed."""
    return importlib.util.find_spec(package) is not None


def make_clock() -> Any:
    """A callback that takes the time of the steps that count."""
    import torch
    import transformers

    class Clock(transformers.TrainerCallback):  # type: ignore[misc]
        began = ended = 0.0
        steps = 0

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.steps += 1
            if self.steps not in (gpu_step.WARM, gpu_step.WARM + gpu_step.STEPS):
                return
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if self.steps == gpu_step.WARM:
                self.began = time.perf_counter()
            else:
                self.ended = time.perf_counter()

    return Clock()


class Counter:
    """A collator that counts the tokens of each batch that it makes."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        self._make = make
        self.seen: list[int] = []

    def __call__(self, rows: Any) -> Any:
        """Make a batch."""
        batch = self._make(rows)
        mask = batch.get("attention_mask")
        self.seen.append(int(mask.sum()) if mask is not None else batch["input_ids"].numel())
        return batch


def make_model(spec: Spec) -> Any:
    """A model with random weights in bfloat16, made on the GPU, with LoRA where it is asked for."""
    import torch
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    family, sizes = gpu_step.SHAPES[spec.shape.rpartition("-")[0]]
    config = CONFIG_MAPPING[family](**sizes, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    gpu = torch.cuda.is_available()
    torch.manual_seed(0)
    with torch.device("cuda" if gpu else "cpu"):
        dtype = torch.bfloat16 if gpu else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if spec.shape.endswith("-lora"):
        import peft

        lora = peft.LoraConfig(task_type="CAUSAL_LM", r=8, lora_alpha=32, lora_dropout=0.0, target_modules=["q_proj", "v_proj"])
        model = peft.get_peft_model(model, lora)
    return model


def make_rows(spec: Spec) -> list[dict[str, list[int]]]:
    """The rows of `gpu_step`, with labels."""
    vocabulary = gpu_step.SHAPES[spec.shape.rpartition("-")[0]][1]["vocab_size"]
    count = round(1.2 * spec.tokens / gpu_step.LAWS["logn"] * (gpu_step.WARM + gpu_step.STEPS + 4))
    rows = gpu_step.make_rows("logn", count, vocabulary).train
    made = []
    for number in range(count):
        ids = rows.tokens[rows.starts[number] : rows.starts[number + 1]].tolist()
        masked = int(rows.first[number])
        made.append({"input_ids": ids, "labels": [-100] * masked + ids[masked:]})
    return made


def arguments(spec: Spec, folder: str) -> dict[str, Any]:
    """What both trainers are told."""
    import torch

    gpu = torch.cuda.is_available()
    return {"output_dir": folder, "max_steps": gpu_step.WARM + gpu_step.STEPS, "bf16": gpu, "use_cpu": not gpu, "report_to": [],
            "logging_steps": 1000, "save_strategy": "no", "optim": "adamw_torch_fused" if gpu else "adamw_torch",
            "gradient_checkpointing": False, "use_liger_kernel": gpu and has("liger_kernel"),
            "ddp_find_unused_parameters": False if spec.gpus > 1 else None}  # fmt: skip


def plain(spec: Spec, folder: str) -> tuple[Any, Counter]:
    """The Trainer of transformers, with padded rows of similar length."""
    import torch
    from transformers import Trainer, TrainingArguments

    def pad(rows: list[dict[str, list[int]]]) -> dict[str, Any]:
        longest = max(len(row["input_ids"]) for row in rows)
        shape = (len(rows), -(-longest // MULTIPLE) * MULTIPLE)
        ids, mask, labels = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long), torch.full(shape, -100)
        for number, row in enumerate(rows):
            size = len(row["input_ids"])
            ids[number, :size], labels[number, :size] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            mask[number, :size] = 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    wanted = max(1, round(spec.tokens / spec.gpus / gpu_step.LAWS["logn"]))
    at_once = min(ROWS_AT_ONCE, wanted)
    counter = Counter(pad)
    options = arguments(spec, folder) | {
        "per_device_train_batch_size": at_once, "gradient_accumulation_steps": round(wanted / at_once),
        "train_sampling_strategy": "group_by_length", "remove_unused_columns": False,
    }  # fmt: skip
    made = TrainingArguments(**options)
    return Trainer(model=make_model(spec), args=made, train_dataset=make_rows(spec), data_collator=counter), counter


def packing(spec: Spec, folder: str) -> tuple[Any, Counter]:
    """SFTTrainer of TRL, with packed rows."""
    import datasets
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    words = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1, "a": 2}, unk_token="<pad>"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>")
    rows = datasets.Dataset.from_list(
        [
            {"input_ids": row["input_ids"], "completion_mask": [int(label != -100) for label in row["labels"]]}
            for row in make_rows(spec)
        ]
    )
    options = arguments(spec, folder) | {"packing": True, "max_length": PACKED,
                                         "per_device_train_batch_size": max(1, spec.tokens // spec.gpus // PACKED)}  # fmt: skip
    trainer = SFTTrainer(model=make_model(spec), args=SFTConfig(**options), train_dataset=rows, processing_class=tokenizer)
    counter = Counter(trainer.data_collator)
    trainer.data_collator = counter
    return trainer, counter
