"""A script as many write it, with the trainer of transformers (`hf`) or TRL (`trl`): rows, model, adapters, and one step.

    python first_step_peer.py hf|trl FOLDER MODEL

FOLDER/rows.jsonl has the rows. It imports nothing of this project.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import datasets
import peft
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainerCallback, TrainingArguments

LORA = {"task_type": "CAUSAL_LM", "r": 8, "lora_alpha": 32, "lora_dropout": 0.0, "target_modules": ["q_proj", "v_proj"]}
LONGEST = 512


class Tell(TrainerCallback):  # type: ignore[misc]
    """Says when the first step is done."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Say it."""
        print("first step", flush=True)


def prompt(row: dict[str, str]) -> str:
    """The prompt of a row."""
    return f"### Instruction:\n{row['instruction']}\n\n### Input:\n{row['context']}\n\n### Response:\n"


def pad(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch, as long as its longest row."""
    longest = max(len(row["input_ids"]) for row in rows)
    fill = {"input_ids": 0, "labels": -100, "attention_mask": 0}
    return {key: torch.tensor([row[key] + [value] * (longest - len(row[key])) for row in rows]) for key, value in fill.items()}


def main(name: str, folder: str, model_folder: str) -> None:
    """Take steps until somebody ends this process."""
    torch.set_num_threads(os.cpu_count() or 1)
    options: dict[str, Any] = {
        "output_dir": folder, "per_device_train_batch_size": 4, "max_steps": 100, "use_cpu": True, "learning_rate": 1e-4,
        "save_strategy": "no", "report_to": [], "disable_tqdm": True, "optim": "adamw_torch_fused",
    }  # fmt: skip
    rows = datasets.load_dataset("json", data_files=f"{folder}/rows.jsonl", split="train")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32, attn_implementation="sdpa")
    if name == "trl":
        from trl import SFTConfig, SFTTrainer

        rows = rows.map(lambda row: {"prompt": prompt(row), "completion": row["response"]}, remove_columns=rows.column_names)
        config = SFTConfig(**options, max_length=LONGEST, gradient_checkpointing=False)
        lora = peft.LoraConfig(**LORA)
        trainer = SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer, peft_config=lora)
    else:

        def encode(row: dict[str, str]) -> dict[str, list[int]]:
            asked = tokenizer(prompt(row))["input_ids"]
            answer = [*tokenizer(row["response"])["input_ids"], tokenizer.eos_token_id]
            ids = [*asked, *answer][:LONGEST]
            return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": [-100] * len(asked) + ids[len(asked) :]}

        rows = rows.map(encode, remove_columns=rows.column_names)
        model = peft.get_peft_model(model, peft.LoraConfig(**LORA))
        trainer = Trainer(model, TrainingArguments(**options), pad, train_dataset=rows)
    trainer.add_callback(Tell())
    trainer.train()


if __name__ == "__main__":
    main(*sys.argv[1:4])
