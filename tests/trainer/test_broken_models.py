"""A base model of which something is broken, missing or of another kind: what it is and what to do, at once and for good."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.errors import ModelInvalid, ModelNotFound, TrainerError
from finetune_trainer.modeling import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:aaaa\nsize 12345\n"
LFS = "it is a pointer of Git LFS, not the file itself): run `git lfs pull`"
CUT = "it is cut off or no such file: copy or download it again"


def as_bin(folder: Path, **options: Any) -> Path:
    """The weights as a file of torch."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", **options)
    (folder / "model.safetensors").unlink()
    return folder / "pytorch_model.bin"


def shards(folder: Path) -> None:
    """The weights as two shards, one of which is lost."""
    weights = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
    (folder / "model.safetensors.index.json").write_text(weights)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")


def write(name: str, text: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_text(text)


def remove_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def only_settings(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def adapter(folder: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    beside(folder)


def beside(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x/y", "r": 4}))


def of_type(name: str) -> Callable[[Path], Any]:
    def change(folder: Path) -> None:
        from transformers import CONFIG_MAPPING

        CONFIG_MAPPING[name](vocab_size=400).save_pretrained(folder)

    return change


CASES: dict[str, tuple[Callable[[Path], Any], type[TrainerError], str]] = {
    "bin: pointer": (lambda folder: as_bin(folder).write_text(POINTER), ModelInvalid, f"pytorch_model.bin cannot be read ({LFS}"),
    "bin: cut off": (lambda folder: os.truncate(as_bin(folder), 5000), ModelInvalid, CUT),
    "bin: empty": (lambda folder: os.truncate(as_bin(folder), 0), ModelInvalid, CUT),
    "bin: a page": (lambda folder: as_bin(folder).write_text("<html>"), ModelInvalid, "it holds no weights of torch"),
    "bin: old, cut off": (
        lambda folder: os.truncate(as_bin(folder, _use_new_zipfile_serialization=False), 5000), ModelInvalid, ""),
    "safetensors: pointer": (write("model.safetensors", POINTER), ModelInvalid, f"model.safetensors cannot be read ({LFS}"),
    "shard lost": (shards, ModelInvalid, "names model-00002-of-00002.safetensors, which is not there: copy or download it too"),
    "tokenizer: pointer": (write("tokenizer.json", POINTER), ModelInvalid, f"tokenizer.json cannot be read ({LFS}"),
    "tokenizer: no object": (write("tokenizer.json", "[]"), ModelInvalid, "tokenizer.json cannot be read (it holds no JSON"),
    "tokenizer: another object": (write("tokenizer.json", "{}"), ModelInvalid, "one of its files is broken, or of another"),
    "tokenizer settings: no object": (write("tokenizer_config.json", "3"), ModelInvalid, "it holds no JSON object"),
    "config: pointer": (write("config.json", POINTER), ModelInvalid, f"config.json cannot be read ({LFS}"),
    "config: no object": (write("config.json", "[]"), ModelInvalid, "config.json cannot be read (it holds no JSON object)"),
    "config: of nothing": (write("config.json", "{}"), ModelInvalid, "its config.json names no model_type"),
    "config: odd sizes": (write("config.json", '{"model_type": "llama", "hidden_size": "big"}'), ModelInvalid, ""),
    "no config": (lambda folder: (folder / "config.json").unlink(), ModelNotFound, "there is no config.json in {folder}"),
    "no tokenizer": (remove_tokenizer, ModelNotFound, "there are no tokenizer files in {folder}"),
    "settings of a tokenizer alone": (only_settings, ModelNotFound, "there are no tokenizer files in {folder}"),
    "adapter": (adapter, ModelInvalid, "the folder {folder} is a LoRA adapter, not a model: name its base model, x/y, or"),
    "adapter beside a model": (beside, ModelInvalid, "the folder {folder} is a LoRA adapter, not a model"),
    "BERT": (of_type("bert"), ModelInvalid, "it is an encoder (model_type bert), not a causal language model"),
    "RoBERTa": (of_type("roberta"), ModelInvalid, "it is an encoder (model_type roberta), not a causal language model"),
    "T5": (of_type("t5"), ModelInvalid, "it is an encoder and a decoder (model_type t5), not a causal language model"),
    "BART": (of_type("bart"), ModelInvalid, "it is an encoder and a decoder (model_type bart), not a causal language model"),
    "ViT": (write("config.json", '{"model_type": "vit"}'), ModelInvalid, "it is not a causal language model"),
    "unknown type": (write("config.json", '{"model_type": "llamma"}'), ModelInvalid, "llamma"),
}  # fmt: skip


def make_run(name: str, **options: Any) -> Run:
    config = TrainerConfig.model_validate({"General": {"base_model": name}, "Dataset": {"train_file": "f"}})
    return Run(config=config, output_dir=options.pop("folder"), **options)


def refusal(folder: Path, name: str, **options: Any) -> TrainerError:
    """What is said when tokenizer and model are loaded as at the start of a run."""
    run = make_run(name, folder=folder, **options)

    def begin() -> None:
        load.load_tokenizer(run)
        load.load_model(run, torch.float32)

    with pytest.raises(TrainerError) as error:
        begin()
    return error.value


@pytest.mark.sampled(4)
@pytest.mark.parametrize("case", CASES)
def test_broken_model_is_explained_and_not_tried_again(tmp_path: Path, model_folder: Callable[[str], Path], case: str) -> None:
    harm, kind, words = CASES[case]
    folder = tmp_path / "model"
    shutil.copytree(model_folder("llama"), folder)
    harm(folder)
    error = refusal(tmp_path, str(folder))
    assert isinstance(error, kind), error
    assert error.reason in ("ModelInvalid", "ModelNotFound")
    assert not error.retryable
    text = str(error)
    assert text.startswith(f"{folder}: ")
    assert words.format(folder=folder) in text
    assert "weights_only" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize("name", ["/data/nowhere", "./nowhere", "../nowhere", "~/no-such-folder-of-a-model"])
def test_folder_that_does_not_exist(tmp_path: Path, name: str) -> None:
    error = refusal(tmp_path, name, working_dir=tmp_path)
    assert isinstance(error, ModelNotFound)
    assert str(error).startswith(f"{name}: there is no folder /")


def test_model_dir_that_does_not_exist_or_is_a_file(tmp_path: Path) -> None:
    assert str(refusal(tmp_path, "org/m", model_dir=tmp_path / "no")) == f"org/m: there is no folder {tmp_path}/no"
    (tmp_path / "file").touch()
    assert "it is a file, not the folder of a model" in str(refusal(tmp_path, "org/m", model_dir=tmp_path / "file"))


@pytest.mark.parametrize("family", ["gpt_neox", "opt", "mpt"])
def test_causal_models_are_taken_whatever_their_switches(
    tmp_path: Path, model_folder: Callable[[str], Path], family: str
) -> None:
    run = make_run(str(model_folder(family)), folder=tmp_path)
    assert load.load_model(run, torch.float32).config.model_type == family


def test_encoder_that_is_made_a_decoder_is_causal(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoModelForCausalLM, BertConfig

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    AutoModelForCausalLM.from_config(BertConfig(vocab_size=400, is_decoder=True, **sizes)).save_pretrained(tmp_path / "m")
    tokenizer.save_pretrained(tmp_path / "m")
    assert load.load_base(make_run(str(tmp_path / "m"), folder=tmp_path), torch.float32).config.is_decoder
