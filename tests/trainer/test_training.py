"""Whole runs on tiny models, in this process: what they write, and how they fail."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from tests.support.trainer import SIZES, Outcome, sample_rows

from finetune_trainer.output.manifest import find_result

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.trainer import Command

pytestmark = pytest.mark.sampled(8)


def check_manifest(outcome: Outcome) -> dict[str, Any]:
    """The manifest names every file of the result with its checksum; give it."""
    data = (outcome.output / "manifest.json").read_bytes()
    manifest: dict[str, Any] = json.loads(data)
    for entry in manifest["files"]:
        content = (outcome.output / entry["path"]).read_bytes()
        assert entry["sizeBytes"] == len(content)
        assert entry["sha256"] == hashlib.sha256(content).hexdigest()
    there = {str(path.relative_to(outcome.output)) for path in outcome.output.rglob("*") if path.is_file()}
    named = {entry["path"] for entry in manifest["files"]}
    attempt = f"logs/attempt-{manifest['attempt']}"
    logs = {"logs/progress.json", "logs/metrics.jsonl", f"{attempt}/driver.log", f"{attempt}/rank-0.log"}
    assert there == named | {"manifest.json"} | logs
    assert outcome.progress["output"]["manifestSha256"] == hashlib.sha256(data).hexdigest()
    assert outcome.progress["output"]["files"] == len(named)
    return manifest


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning")  # PEFT, when it loads an adapter
def test_adapter(command: Command, model_folder: Callable[[str], Path]) -> None:
    command.change("General", base_model="org/tiny", sample_prompts=1).change("Dataset", validation_split_percentage=10)
    command.change("Training", max_train_steps=12)
    outcome = command.run("--model_dir", str(model_folder("llama")), "--attempt", "3")
    assert outcome.code == 0, outcome.err

    manifest = check_manifest(outcome)
    assert manifest["format"] == "peft-adapter"
    assert manifest["baseModel"] == "org/tiny"
    named = {file["path"] for file in manifest["files"]}
    assert {"adapter_model.safetensors", "tokenizer.json", "README.md", "report.html", "logs/samples.json"} <= named
    adapter = json.loads((outcome.output / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "org/tiny"
    assert sorted(adapter["target_modules"]) == ["q_proj", "v_proj"]

    progress = outcome.progress
    assert (progress["state"], progress["step"], progress["percent"], progress["attempt"]) == ("finished", 12, 100, 3)
    assert progress["world"]["devices"] == ["cpu"]
    assert progress["result"]["trainLoss"] < progress["result"]["firstLoss"] - 0.1
    assert progress["result"]["evalLoss"] < progress["result"]["firstLoss"]
    assert len(outcome.losses) == 12
    assert outcome.out.startswith("step 1/12 (8 %) epoch 0.0909 loss 5.")
    assert "evaluation loss" in outcome.out

    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model_folder("llama"))
    adapted = PeftModel.from_pretrained(base, outcome.output)
    ids = torch.arange(1, 9)[None]
    with torch.no_grad():
        changed = adapted(ids).logits
        with adapted.disable_adapter():
            assert not torch.equal(changed, adapted(ids).logits)


def test_full_model(command: Command) -> None:
    command.change("General", lora_config=None)
    outcome = command.run()
    assert outcome.code == 0, outcome.err
    assert check_manifest(outcome)["format"] == "full-model"

    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert AutoTokenizer.from_pretrained(outcome.output).eos_token == "<|endoftext|>"
    model = AutoModelForCausalLM.from_pretrained(outcome.output)
    before = AutoModelForCausalLM.from_pretrained(command.config["General"]["base_model"])
    assert not torch.equal(model.lm_head.weight, before.lm_head.weight)


@pytest.mark.parametrize("part", ["", "merged"])
def test_result_is_no_base_model_for_what_takes_its_place(command: Command, part: str) -> None:
    command.change("General", merge_adapter=True)
    first = command.run("--run_name", "one")
    assert first.code == 0, first.err
    outcome = command.run("--model_dir", str(first.output / part), "--run_name", "two")
    assert outcome.code == 2
    assert f"General.base_model: {first.output / part} is an older result in the output folder" in outcome.err
    assert find_result(first.output, "one") is not None


def test_mistake_in_the_rows_costs_no_older_result(command: Command) -> None:
    assert command.run("--run_name", "one").code == 0
    outcome = command.change("Dataset", train_file="absent.jsonl").run("--run_name", "two")
    assert outcome.code == 3
    assert find_result(outcome.output, "one") is not None


def test_complete_result_of_the_same_run_is_kept(command: Command) -> None:
    first = command.run("--run_name", "one")
    assert first.code == 0, first.err
    manifest = (first.output / "manifest.json").read_bytes()
    again = command.run("--run_name", "one", "--attempt", "2")
    assert again.code == 0
    assert again.out == f"finished in an earlier attempt: {again.output}\n"
    assert (again.output / "manifest.json").read_bytes() == manifest
    assert (again.progress["attempt"], again.progress["state"]) == (2, "finished")
    assert again.progress["output"] == first.progress["output"]
    assert again.progress["result"] == first.progress["result"]

    (again.output / "tokenizer.json").write_text("{}")
    harmed = command.run("--run_name", "one")
    assert "step 1/4" in harmed.out
    assert (harmed.output / "tokenizer.json").stat().st_size > 2
    other = command.run("--run_name", "two")
    assert "step 1/4" in other.out


def test_accumulation_is_exact(command: Command) -> None:
    """Two micro-batches of two rows take the same steps as one batch of four."""
    # Windows of batches have the size of a micro-batch; in the file's order the rows of a step are the same.
    whole = command.change("Dataset", shuffle=False).change("Training", batch_size=4, gradient_accumulation_steps=1).run()
    parts = command.change("Training", batch_size=2, gradient_accumulation_steps=2).run()
    assert parts.losses == pytest.approx(whole.losses, abs=1e-5)


def test_budget_of_tokens_learns_what_batches_of_the_same_rows_do(command: Command) -> None:
    """All rows in each step, by number or by tokens."""
    command.change("Training", max_train_steps=None, epochs=4)
    rows = command.change("Training", batch_size=24).run()
    tokens = command.change("Training", batch_size=1, tokens_per_step=10**6, gradient_accumulation_steps=2).run()
    assert len(rows.losses) == 4
    assert tokens.losses == pytest.approx(rows.losses, abs=1e-5)


def test_padding_side_changes_nothing(command: Command) -> None:
    right = command.run()
    left = command.change("Dataset", padding_side="left").run()
    assert left.losses == pytest.approx(right.losses, abs=1e-5)


def test_loss_that_is_not_finite(command: Command) -> None:
    from transformers import AutoModelForCausalLM

    broken = command.folder / "broken"
    shutil.copytree(command.config["General"]["base_model"], broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.lm_head.weight[5] = float("nan")
    model.save_pretrained(broken)
    outcome = command.run("--model_dir", str(broken))
    assert outcome.code == 6
    assert "error: the loss is nan at step 1 of 4 (rows data.jsonl:13, data.jsonl:21); look at those rows" in outcome.err
    command.change("Training", batch_size=4, gradient_accumulation_steps=2)
    places = re.search(r"\(rows (.+?)\);", command.run("--model_dir", str(broken)).err)
    assert places is not None
    assert re.fullmatch(r"(data\.jsonl:\d+, ){5}3 more", places[1])
    assert outcome.progress["failure"]["reason"] == "LossNotFinite"
    assert outcome.progress["state"] == "failed"
    assert not (outcome.output / "manifest.json").exists()


def test_missing_gpu(command: Command) -> None:
    if torch.cuda.is_available() or torch.xpu.is_available():
        pytest.skip("there is a GPU")
    outcome = command.change("Training", device="GPU", resources_per_worker={"CPU": 1, "GPU": 1}).run()
    assert outcome.code == 5
    assert "device GPU is asked for, but none can be used" in outcome.err
    assert f"torch {torch.__version__}" in outcome.err
    assert outcome.progress["failure"]["reason"] == "DeviceNotFound"


def test_missing_model(command: Command) -> None:
    outcome = command.change("General", base_model="org/none").run()
    assert outcome.code == 4
    assert outcome.err.splitlines()[-1].startswith("error: org/none: cannot load the tokenizer from the Hugging Face hub")
    outcome = command.run("--model_dir", str(command.folder / "none"))
    assert outcome.code == 4
    assert f"error: org/none: there is no folder {command.folder / 'none'}\n" in outcome.err
    assert outcome.progress["failure"]["reason"] == "ModelNotFound"


def test_lora_targets_that_are_not_there(command: Command) -> None:
    command.change("General", lora_config={"target_modules": ["q_proj", "Wqkv"]})
    outcome = command.run()
    assert outcome.code == 2
    assert "General.lora_config.target_modules: the model has no Wqkv; it has down_proj, embed_tokens, gate_proj" in outcome.err


def test_rows_longer_than_the_model(command: Command) -> None:
    command.write_rows({"instruction": "a", "response": "b " * 2000})
    outcome = command.change("Dataset", max_length=4096).run()
    assert outcome.code == 2
    assert "the model takes 512" in outcome.err


@pytest.mark.parametrize("family", list(SIZES))
def test_loss_on_supervised_rows_is_the_models_own_loss(
    model_folder: Callable[[str], Path], family: str, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.batching import collate
    from finetune_trainer.data.encode import encode_rows
    from finetune_trainer.data.jsonl import Row
    from finetune_trainer.modeling import loss

    rows = [Row(**{**row, "line": 1}) for row in sample_rows(3)]
    examples = encode_rows(rows, tokenizer, Dataset(train_file="f"), "f")
    batch = collate(examples, torch.arange(3).numpy(), 0, "right", None)
    model = AutoModelForCausalLM.from_pretrained(model_folder(family), dtype=torch.float32)
    module = loss.SupervisedLoss(model)
    assert not module.whole_logits
    fast = module(batch)
    labels = torch.full_like(batch.input_ids, -100)
    labels.view(-1)[batch.places + 1] = batch.targets
    mask = (torch.arange(batch.input_ids.shape[1])[None] < torch.tensor(examples.lengths)[:, None]).long()
    own = model(batch.input_ids, attention_mask=mask, labels=labels).loss * examples.supervised.sum()
    assert fast.item() == pytest.approx(own.item(), rel=1e-5)
