"""The command learns as the Trainer of Hugging Face does: the same rows in the same order give the same losses.

One thing is not the same by default, and is the same here: the HF Trainer shuffles by a generator of its own, so that both
take the rows in their order. Its loss is the mean over the supervised tokens of all rows of a step, as ours is, since it
tells the model how many these are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.support.trainer import Outcome, sample_rows

from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),  # PEFT, when it makes an adapter
]
STEPS = 20
ROWS = 22
"""No multiple of a batch: each epoch ends with a smaller one, and with a smaller step."""
TOLERANCE = 1e-3


def uneven_rows() -> list[dict[str, str]]:
    """Rows whose responses differ in length: the mean over tokens is not the mean over rows."""
    return [row | {"response": row["response"] * (1 + number % 5)} for number, row in enumerate(sample_rows(ROWS))]


@dataclass(frozen=True)
class Case:
    """A run that both do."""

    family: str
    lora: bool
    accumulate: int
    group: bool
    """Whether our rows are packed. Those of the HF Trainer are padded in any case."""
    rate: float
    optimizer: str = "adamw_torch"
    decay: float = 0.0


CASES = {
    "llama-lora": Case("llama", lora=True, accumulate=1, group=True, rate=0.02),
    "gpt2-full": Case("gpt2", lora=False, accumulate=2, group=False, rate=0.002),
    "llama-decay": Case("llama", lora=False, accumulate=1, group=True, rate=0.02, decay=5.0),
    "gpt2-decay": Case("gpt2", lora=False, accumulate=1, group=True, rate=0.02, decay=5.0),
    "gpt2-adafactor": Case("gpt2", lora=False, accumulate=1, group=False, rate=0.002, optimizer="adafactor", decay=1.0),
    "llama-lora-adafactor": Case("llama", lora=True, accumulate=1, group=True, rate=0.02, optimizer="adafactor"),
}


@dataclass
class Oracle:
    """The HF Trainer on what a command is configured for."""

    config: TrainerConfig
    tokenizer: Any
    shift: int = 0
    """By how many positions the labels are wrong."""
    rate: float = 1.0
    """Times the learning rate."""
    counts_tokens: bool = True
    """Whether the loss is the mean over the tokens of a step; else that of the means of its micro-batches."""
    folder: str = "unused"
    """Where it would write."""

    def dataset(self) -> list[dict[str, list[int]]]:
        """The rows in tokens, and what is to be learned of them."""
        rows = [Row(**row, line=1) for row in uneven_rows()]
        examples = encode_rows(rows, self.tokenizer, self.config.dataset, "f")
        made = []
        for index in range(len(examples)):
            ids, first, last = examples.row(index).tolist(), int(examples.first[index]), int(examples.last[index])
            labels = [-100] * first + ids[first:last] + [-100] * (len(ids) - last)
            made.append({"input_ids": ids, "labels": labels[self.shift :] + [-100] * self.shift})
        return made

    def collate(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        """Pad some rows on the right, with a mask."""
        width = max(len(row["input_ids"]) for row in rows)

        def pad(key: str, value: int) -> torch.Tensor:
            return torch.tensor([row[key] + [value] * (width - len(row[key])) for row in rows])

        mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
        return {"input_ids": pad("input_ids", 0), "labels": pad("labels", -100), "attention_mask": torch.tensor(mask)}

    def model(self) -> Any:
        """The model as it is before the first step: the adapter's first weights come from the seed."""
        import peft
        from transformers import AutoModelForCausalLM

        torch.manual_seed(self.config.training.seed)
        model = AutoModelForCausalLM.from_pretrained(self.config.general.base_model, dtype=torch.float32)
        lora = self.config.general.lora_config
        if lora is None:
            return model
        options = {"r": lora.r, "lora_alpha": lora.lora_alpha, "lora_dropout": lora.lora_dropout}
        return peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], **options))

    def records(self) -> list[dict[str, float]]:
        """Loss and norm of the gradients of each step."""
        # Imported here, since it takes seconds.
        from transformers import Trainer, TrainingArguments

        training = self.config.training
        arguments = TrainingArguments(
            output_dir=self.folder,
            per_device_train_batch_size=training.batch_size,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_steps=STEPS,
            learning_rate=training.learning_rate * self.rate,
            lr_scheduler_type="linear",
            warmup_steps=0,
            optim=training.optimizer,
            weight_decay=training.weight_decay,
            max_grad_norm=1.0,
            train_sampling_strategy="sequential",
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            remove_unused_columns=False,
        )
        trainer = Trainer(self.model(), arguments, data_collator=self.collate, train_dataset=self.dataset())
        assert trainer.model_accepts_loss_kwargs
        trainer.model_accepts_loss_kwargs = self.counts_tokens
        trainer.train()
        return [record for record in trainer.state.log_history if "loss" in record]


@pytest.fixture(scope="module")
def made() -> dict[Case, Outcome]:
    """What the command made of each case."""
    return {}


@pytest.fixture
def difference(
    command: Command, model_folder: Callable[[str], Path], tokenizer: Any, made: dict[Case, Outcome]
) -> Callable[..., float]:
    """The largest difference between the command's losses and norms and the HF Trainer's, which may be led astray."""

    def run(case: Case, **astray: Any) -> float:
        command.write_rows(*uneven_rows())
        lora = command.config["General"]["lora_config"] if case.lora else None
        command.change("General", base_model=str(model_folder(case.family)), lora_config=lora)
        command.change("Dataset", shuffle=False, group=case.group)
        command.change("Training", batch_size=4, gradient_accumulation_steps=case.accumulate)
        command.change("Training", max_train_steps=STEPS, learning_rate=case.rate)
        command.change("Training", optimizer=case.optimizer, weight_decay=case.decay)
        if case not in made:
            made[case] = command.run()
        ours, config = made[case].steps, TrainerConfig.model_validate(command.config)
        theirs = Oracle(config, tokenizer, folder=str(command.folder / "theirs"), **astray).records()
        assert len(ours) == len(theirs) == STEPS
        assert ours[-1]["loss"] < ours[0]["loss"] - 0.2
        pairs = zip(ours, theirs, strict=True)
        return max(
            abs(our[key] - their[name]) for our, their in pairs for key, name in (("loss", "loss"), ("gradNorm", "grad_norm"))
        )

    return run


@pytest.mark.parametrize("case", CASES)
def test_losses_are_those_of_the_hf_trainer(difference: Callable[..., float], case: str) -> None:
    assert difference(CASES[case]) < TOLERANCE


@pytest.mark.parametrize("astray", [{"shift": 1}, {"rate": 1.1}, {"counts_tokens": False}], ids=lambda astray: next(iter(astray)))
def test_an_oracle_that_is_led_astray_is_found_out(difference: Callable[..., float], astray: dict[str, Any]) -> None:
    assert difference(CASES["gpt2-full"], **astray) > TOLERANCE
