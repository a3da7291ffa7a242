"""Answers to a few prompts, before training and after it."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.support import ranks
from tests.support.trainer import SIZES, Outcome, prompt_ids, sample_rows
from transformers import AutoModelForCausalLM

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.data.jsonl import Row
from finetune_trainer.modeling import families
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.training import samples

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)


def shown(outcome: Outcome) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((outcome.output / "logs" / "samples.json").read_text())
    return found


def ask(module: SupervisedLoss, prompts: list[list[int]]) -> list[list[int]]:
    ids, mask = samples.pad(tuple(prompts), 0)
    made: list[list[int]] = module.generate(ids, mask, torch.tensor([0]), 12, lambda tokens: tokens).tolist()
    return [line[: line.index(0)] if 0 in line else line for line in made]


@torch.no_grad()
@pytest.mark.parametrize("family", SIZES)
def test_answer_in_a_batch_is_the_answer_alone_and_that_of_transformers(
    model_folder: Callable[[str], Path], tokenizer: Any, family: str
) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32).eval()
    for weight in families.decoder_layers(model).parameters():
        weight.mul_(20 if weight.ndim == 2 else 1)  # weights as small as fresh ones repeat one token
    module = SupervisedLoss(model)
    rows = [Row(**row, line=1) for row in sample_rows(3)]
    prompts = [prompt_ids(row, tokenizer, Dataset(train_file="f")) for row in rows]
    assert len({len(prompt) for prompt in prompts}) > 1
    together = ask(module, prompts)
    assert together == [ask(module, [prompt])[0] for prompt in prompts]
    own = [
        model.generate(torch.tensor([prompt]), max_new_tokens=12, do_sample=False, eos_token_id=0, pad_token_id=0)[0]
        for prompt in prompts
    ]
    assert together == [
        [token for token in line[len(prompt) :].tolist() if token] for prompt, line in zip(prompts, own, strict=True)
    ]
    assert len({tuple(line) for line in together}) > 1


@pytest.mark.parametrize("lora", [True, False])
def test_answers_before_and_after_training(command: Command, tokenizer: Any, lora: bool) -> None:
    """The base model is asked before the first step only where it is lost with it."""
    command.change("General", sample_prompts=2).change("Dataset", validation_split_percentage=10)
    if not lora:
        command.change("General", lora_config=None)
    command.change("Training", max_train_steps=12)
    seen = []

    def look(record: dict[str, Any]) -> None:
        if record["step"] == 1:
            seen.extend(json.loads((command.output / "logs" / "samples.json").read_text()))

    outcome = command.train(look)
    assert [sample["after"] for sample in seen] == [None, None]
    found = shown(outcome)
    assert [sample["before"] for sample in seen] == [None if lora else sample["before"] for sample in found]
    places = {f"data.jsonl:{line}": row for line, row in enumerate(sample_rows(), start=1)}
    for sample in found:
        row = places[sample["row"]]
        assert row["instruction"] in sample["prompt"]
        assert "<|endoftext|>" not in sample["prompt"]
        assert sample["expected"] == row["response"]
        assert not sample["before"]["stopped"]
        assert sample["after"] != sample["before"]
    manifest = json.loads((outcome.output / "manifest.json").read_text())
    assert "logs/samples.json" in [entry["path"] for entry in manifest["files"]]


def test_model_that_has_learned_ends_its_answer(command: Command) -> None:
    command.write_rows(*[{"instruction": "Say yes.", "response": "yes"}] * 8)
    command.change("General", sample_prompts=1, lora_config=None)
    outcome = command.change("Training", max_train_steps=40, batch_size=8, logging_steps=40).run()
    assert outcome.code == 0, outcome.err
    (sample,) = shown(outcome)
    assert sample["after"] == {"text": "yes", "stopped": True}
    assert len(sample["before"]["text"]) > 3


def test_first_answers_are_those_of_the_model_that_the_run_began_with(command: Command) -> None:
    command.change("General", sample_prompts=3).change("Training", max_train_steps=6)
    whole = command.run("--output_dir", str(command.folder / "whole"))
    whole.output = command.folder / "whole"
    assert shown(command.train_until(2, "r"))[0]["after"] is None
    resumed = command.run("--run_name", "r")
    assert "resumed after step 3" in resumed.out
    assert shown(resumed) == shown(whole)
    assert len(shown(whole)) == 3


def test_answers_of_the_base_model_are_the_same_with_adapters_and_without(command: Command) -> None:
    command.change("General", sample_prompts=3)
    with_adapters = shown(command.train(lambda _: None))
    command.change("General", lora_config=None, output_dir=str(command.folder / "full"))
    without = shown(command.train(lambda _: None))
    assert [sample["before"] for sample in with_adapters] == [sample["before"] for sample in without]
    assert all(sample["before"] for sample in without)


def test_answers_that_were_lost_are_not_made_up(command: Command) -> None:
    command.change("General", sample_prompts=1, lora_config=None)
    command.train_until(1, "r")
    (command.output / "logs" / "samples.json").write_text("[{")
    resumed = command.run("--run_name", "r")
    assert resumed.code == 0, resumed.err
    assert shown(resumed)[0]["before"] is None
    assert "was not kept" in (resumed.output / "report.html").read_text()


def test_no_prompts_no_answers(command: Command) -> None:
    command.change("General", sample_prompts=1).run()
    outcome = command.change("General", sample_prompts=0).run()
    assert not (outcome.output / "logs" / "samples.json").exists()
    assert "Answers before and after" not in (outcome.output / "report.html").read_text()


@pytest.mark.slow
def test_ranks_agree_on_the_answers(command: Command, tmp_path: Path, model_folder: Callable[[str], Path]) -> None:
    """DDP asks one rank, FSDP all of them; their answers are the same, and training continues as without them."""
    runs, losses = [], {}
    lora = command.config["General"]["lora_config"]
    command.change("Training", batch_size=4, learning_rate=0.001, max_train_steps=2)
    for family, adapter, mode, prompts in (
        ("llama", lora, "DDP", 3),
        ("llama", lora, "FSDP", 3),
        ("llama", lora, "FSDP", 0),
        ("bloom", None, "DDP", 2),
        ("bloom", None, "FSDP", 2),
    ):
        output = str(tmp_path / f"{family}-{mode}-{prompts}")
        command.change("General", base_model=str(model_folder(family)), lora_config=adapter, output_dir=output)
        command.change("General", sample_prompts=prompts, enable_gradient_checkpointing=family == "bloom")
        command.change("Training", accelerate_mode=mode)
        runs.append({"config": copy.deepcopy(command.config), "data": str(command.folder), "stop": None, "name": None})
    ranks.start(tmp_path / "ranks", runs, 2)
    for run in runs:
        path = Path(run["config"]["General"]["output_dir"])
        losses[path.name] = Outcome(0, "", "", path).losses
    for family, prompts in (("llama", 3), ("bloom", 2)):
        one, other = (shown(Outcome(0, "", "", tmp_path / f"{family}-{mode}-{prompts}")) for mode in ("DDP", "FSDP"))
        assert len(one) == prompts
        assert one == other
        assert all(sample["before"] and sample["after"] for sample in one)
    assert losses["llama-FSDP-3"] == losses["llama-FSDP-0"]


def test_answers_end_with_their_share_of_the_run() -> None:
    now, chosen = 100.0, torch.tensor([5, 7])
    allowance = samples.Allowance(lambda first: 300 * first, lambda: now)
    now += 4.0  # the first pass: the run takes 1200 s, of which answers may take 12
    assert torch.equal(allowance.check(chosen), chosen)
    now += 7.9
    assert torch.equal(allowance.check(chosen), chosen)
    now += 0.2
    assert allowance.check(chosen).tolist() == [-1, -1]


@torch.no_grad()
def test_answer_that_ran_out_of_time_is_what_was_made_until_then(model_folder: Callable[[str], Path]) -> None:
    module = SupervisedLoss(AutoModelForCausalLM.from_pretrained(model_folder("llama"), dtype=torch.float32).eval())
    ids, mask = samples.pad(([5, 6, 7], [8, 9]), 0)
    whole = module.generate(ids, mask, torch.tensor([-5]), 6, lambda tokens: tokens)
    left = iter([True, True, True, False])
    cut = module.generate(ids, mask, torch.tensor([-5]), 6, lambda tokens: tokens if next(left) else torch.full_like(tokens, -1))
    assert cut.tolist() == whole[:, :3].tolist()
