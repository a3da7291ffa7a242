"""The result is what was trained, takes the place of an older one at the end only, and costs little memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.support.trainer import SIZES, VOCABULARY, make_model
from transformers import AutoModelForCausalLM

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.errors import ExportInvalid
from finetune_trainer.files import sync
from finetune_trainer.output import manifest, verify
from finetune_trainer.output.manifest import find_result

if TYPE_CHECKING:
    from tests.support.trainer import Command

pytestmark = [
    pytest.mark.sampled(8),
    # PEFT, when it loads an adapter
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing:FutureWarning"),
    # PEFT, of tied layers and of linear layers among GPT-2's convolutions
    pytest.mark.filterwarnings("ignore:fan_in_fan_out:UserWarning", "ignore:.*[tT]ie:UserWarning"),
]

ROWS = torch.arange(1, 25)[None]


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.eval()(input_ids=ROWS).logits
    return result


def load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_adapter(command: Command) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(load(command.config["General"]["base_model"]), command.output)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "apart"])
@pytest.mark.parametrize(
    ("family", "targets"),
    [
        ("llama", ["embed_tokens"]),
        ("llama", ["lm_head"]),
        ("llama", ["embed_tokens", "lm_head", "q_proj"]),
        ("gpt2", ["wte"]),
        ("opt", ["embed_tokens", "v_proj"]),
        ("gpt_neox", ["embed_in"]),
        ("bloom", ["word_embeddings"]),
        ("mpt", ["wte", "Wqkv"]),
    ],
)
def test_merged_model_is_the_adapted_one_whatever_is_tied(
    command: Command, tokenizer: Any, family: str, targets: list[str], tied: bool
) -> None:
    base = make_model(family, tokenizer, command.folder / "base", tie_word_embeddings=tied)
    lora = {"r": 4, "lora_alpha": 16, "lora_dropout": 0.0, "target_modules": targets}
    command.change("General", base_model=str(base), lora_config=lora, merge_adapter=True)
    outcome = command.change("Training", max_train_steps=6, learning_rate=0.05).run()
    assert outcome.code == 0, outcome.err
    learned, before = logits(with_adapter(command)), logits(load(base))
    assert float((learned - before).abs().max()) > 0.01
    torch.testing.assert_close(logits(load(command.output / "merged")), learned, atol=1e-4, rtol=1e-4)


def reference_of(model: Any) -> verify.Reference:
    return verify.Reference((ROWS,), (logits(model)[0, -4:],))


def a_run(folder: Path) -> Run:
    config = {"General": {"base_model": "m", "output_dir": str(folder)}, "Dataset": {"train_file": "f"}, "Training": {}}
    return Run(config=TrainerConfig.model_validate(config), output_dir=folder)


@pytest.mark.parametrize("family", SIZES)
def test_full_model_with_a_wrong_weight_is_no_result(tmp_path: Path, tokenizer: Any, family: str) -> None:
    folder = make_model(family, tokenizer, tmp_path / "model")
    reference = reference_of(load(folder))
    verify.verify_model(a_run(tmp_path), folder, reference, torch.float32)
    tensors = load_file(folder / "model.safetensors")
    name = max((name for name in tensors if "0" in name), key=lambda name: tensors[name].numel())
    save_file(tensors | {name: -tensors[name]}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportInvalid, match="other answers than the model that was trained"):
        verify.verify_model(a_run(tmp_path), folder, reference, torch.float32)
    assert not (folder / ".offload").exists()


def test_full_model_with_a_missing_weight_is_no_result(tmp_path: Path, tokenizer: Any) -> None:
    folder = make_model("llama", tokenizer, tmp_path / "model")
    reference = reference_of(load(folder))
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportInvalid, match=r"lack model\.layers\.1\.mlp\.up_proj\.weight"):
        verify.verify_model(a_run(tmp_path), folder, reference, torch.float32)


def test_adapter_with_a_wrong_weight_is_no_result(command: Command) -> None:
    assert command.change("Training", learning_rate=0.05).run().code == 0
    model = with_adapter(command)
    verify.verify_adapter(model, None, command.output, reference_of(model), torch.float32)
    path = command.output / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: -value if "lora_B" in name else value for name, value in tensors.items()}, path)
    with pytest.raises(ExportInvalid, match="other answers"):
        verify.verify_adapter(model, None, command.output, reference_of(model), torch.float32)
    assert model.active_adapter == "default"
    gathered = {name.replace(".weight", ".default.weight"): value for name, value in tensors.items()}
    with pytest.raises(ExportInvalid, match="has 4 of the 8 tensors"):
        verify.verify_adapter(model, gathered, command.output, reference_of(model), torch.float32)


MISTAKES: dict[str, tuple[int, str, dict[str, Any]]] = {
    "target_modules": (2, "General", {"lora_config": {"r": 4, "lora_alpha": 8, "target_modules": ["q_porj"]}}),
    "base model": (4, "General", {"base_model": "org/none"}),
    "device": (5, "Training", {"device": "gpu", "resources_per_worker": {"CPU": 1, "GPU": 1}}),
    "weights": (6, "Training", {"max_train_steps": 2}),
}
"""Exit code, and what is changed in which section."""


@pytest.mark.sampled(2)
@pytest.mark.parametrize("mistake", MISTAKES)
def test_failed_run_costs_no_older_result(command: Command, mistake: str) -> None:
    if mistake == "device" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    command.change("General", sample_prompts=2)
    assert command.run("--run_name", "one").code == 0
    before = find_result(command.output, "one")
    assert before is not None
    code, section, values = MISTAKES[mistake]
    if mistake == "weights":
        spoil(command)
    outcome = command.change(section, **values).run("--run_name", "two")
    assert outcome.code == code, outcome.err
    assert find_result(command.output, "one") == before


def spoil(command: Command) -> None:
    """Give the base model a weight from which the loss becomes infinite."""
    base = command.folder / "spoilt"
    shutil.copytree(command.config["General"]["base_model"], base)
    tensors = load_file(base / "model.safetensors")
    tensors["lm_head.weight"].mul_(float("inf"))
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    command.change("General", base_model=str(base))


def test_older_result_is_replaced_by_a_finished_one(command: Command) -> None:
    command.change("General", sample_prompts=2, merge_adapter=True)
    assert command.run("--run_name", "one").code == 0
    command.change("General", sample_prompts=1, merge_adapter=False, lora_config=None)
    assert command.run("--run_name", "two").code == 0
    result = find_result(command.output, "two")
    assert result is not None
    assert result.format == "full-model"
    assert not (command.output / "adapter_model.safetensors").exists()
    assert not (command.output / "merged" / "model.safetensors").exists()
    assert len(json.loads((command.output / "logs" / "samples.json").read_text())) == 1
    assert not (command.output / "logs" / "samples.new.json").exists()


def test_adapter_is_a_result_when_the_merge_fails_and_the_next_attempt_merges(command: Command) -> None:
    command.change("General", merge_adapter=True)
    command.output.mkdir()
    (command.output / "merged").write_text("in the way")
    failed = command.run("--run_name", "r")
    assert failed.code == 7, failed.err
    assert find_result(command.output, "r") is not None
    assert find_result(command.output, "r", "merged") is None
    (command.output / "merged").unlink()
    again = command.run("--run_name", "r", "--attempt", "2")
    assert again.code == 0, again.err
    assert find_result(command.output, "r", "merged") is not None


def test_whole_result_is_on_the_disk_before_it_is_declared_complete(tmp_path: Path) -> None:
    folder, seen = tmp_path / "out", []
    for name in ("weights", "logs/summary.json", "merged/weights"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()

    def look(path: Path) -> None:
        seen.append((str(path.relative_to(folder)), (folder / "manifest.json").exists()))

    names = ["weights", "logs/summary.json", "merged/weights"]
    manifest.write_manifest(a_run(folder), names, manifest.Manifest(format="full-model", base_model="m"), look)
    assert {name for name, declared in seen if not declared} == {*names, ".", "logs", "merged"}
    assert [name for name, declared in seen if declared] == ["."]


def test_file_system_that_cannot_sync_is_no_error() -> None:
    with Path("/dev/null").open("rb") as file, pytest.raises(OSError, match=r"Invalid argument|not supported"):
        os.fsync(file.fileno())
    sync(Path("/dev/null"))


def test_file_that_is_gone_cannot_be_synced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        sync(tmp_path / "gone")


def test_workers_that_are_restarted_when_the_result_is_complete_train_no_more(command: Command) -> None:
    done = command.run("--run_name", "r")
    assert done.code == 0, done.err
    before, progress = (command.output / "manifest.json").read_bytes(), command.output / "logs" / "progress.json"
    told = json.loads(progress.read_text())
    progress.write_text(json.dumps({key: value for key, value in told.items() if key != "output"} | {"state": "exporting"}))
    (command.output / "checkpoints" / ".step-00000004-0123abcd.tmp").mkdir(parents=True)
    again = command.train(lambda record: pytest.fail(f"trained again: {record}"), "r")
    assert (command.output / "manifest.json").read_bytes() == before
    assert (again.progress["state"], again.progress["output"]) == ("finished", told["output"])
    assert again.progress["step"] == told["step"]
    assert not (command.output / "checkpoints").exists()


def test_drafts_of_earlier_workers_are_removed_before_new_ones_begin(command: Command) -> None:
    old = [command.output / name for name in (".export", ".export-0123abcd.tmp", "checkpoints/.step-00000002-0123abcd.tmp")]
    for path in old:
        path.mkdir(parents=True)
    command.train(lambda _: [pytest.fail(f"{path} is left") for path in old if path.exists()], "r")
    assert not list(command.output.glob(".export*"))


PEAKS = """
import json, sys
from finetune_trainer.__main__ import main
from finetune_trainer.runtime import host
code = main(sys.argv[2:])
records = [json.loads(line) for line in open(f"{sys.argv[1]}/logs/metrics.jsonl")]
print(json.dumps([code, records[-1]["memoryBytes"], host.peak_memory()]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_merging_takes_little_more_memory_than_training(command: Command, tokenizer: Any, precision: str) -> None:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 9, "num_attention_heads": 8,
             "num_key_value_heads": 8}  # fmt: skip
    base = make_model("llama", tokenizer, command.folder / "base", **sizes)
    assert sum(path.stat().st_size for path in base.glob("*.safetensors")) > 4 * VOCABULARY * 1024 * 300
    command.change("General", base_model=str(base), merge_adapter=True)
    options = command.change("Training", mixed_precision=precision, max_train_steps=2).line()[3:]
    line = [sys.executable, "-c", PEAKS, command.output, *options]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, training, whole = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    assert whole <= 1.3 * training
