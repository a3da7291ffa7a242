"""Finetuning YAML files of llm-on-ray, of both its forms, load unchanged and mean what they say."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.builders import DATA

from finetune_trainer.config.obsolete_keys import INACTIVE_KEYS, OBSOLETE_KEYS
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.config.yaml_file import load_config
from finetune_trainer.errors import ConfigError

FOLDER = DATA / "llm_on_ray"
ALL_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"]

FAMILY: dict[str, Any] = {
    "general.output_dir": "/tmp/llm-ray/output",
    "general.save_strategy": "no",
    "general.tokenizer_name": None,
    "general.config.trust_remote_code": False,
    "general.config.use_auth_token": None,
    "general.lora_config.r": 8,
    "general.lora_config.lora_alpha": 32,
    "general.lora_config.lora_dropout": 0.1,
    "general.lora_config.target_modules": None,
    "dataset.train_file": "data/train_small.jsonl",
    "dataset.validation_file": None,
    "dataset.validation_split_percentage": 5,
    "training.torch_optimizer": "AdamW",
    "training.batch_size": 2,
    "training.epochs": 3,
    "training.max_train_steps": None,
    "training.learning_rate": 1e-5,
    "training.lr_scheduler": "linear",
    "training.weight_decay": 0.0,
    "training.mixed_precision": "bf16",
    "training.device": "cpu",
    "training.strategy": "DDP",
    "training.num_training_workers": 2,
    "training.resources_per_worker.CPU": 32,
    "training.resources_per_worker.GPU": 0,
}
"""What llm-on-ray's files of the eight families have in common."""

GPU = {"training.device": "gpu", "training.resources_per_worker.CPU": 1, "training.resources_per_worker.GPU": 1}

VALUES: dict[str, dict[str, Any]] = {
    "llama_2_7b_chat": {
        "general.base_model": "meta-llama/Llama-2-7b-chat-hf",
        "general.lora_config.target_modules": ["q_proj", "v_proj"],
    },
    "mistral_7b": {"general.base_model": "mistralai/Mistral-7B-v0.1", "general.lora_config.target_modules": ALL_LAYERS},
    "pythia_6_9b": {"general.base_model": "EleutherAI/pythia-6.9b"},
    "gpt_j_6b": {"general.base_model": "EleutherAI/gpt-j-6b"},
    "bloom_560m": {"general.base_model": "bigscience/bloom-560m"},
    "opt_125m": {"general.base_model": "facebook/opt-125m"},
    "mpt_7b": {
        "general.base_model": "mosaicml/mpt-7b",
        "general.tokenizer_name": "EleutherAI/gpt-neox-20b",
        "general.config.trust_remote_code": True,
    },
    "gpt2": {"general.base_model": "gpt2"},
    "llama_2_7b_chat_gpu": GPU
    | {
        "general.base_model": "/mnt/models/Llama-2-7b-chat-hf",
        "general.output_dir": "/mnt/output/llama-2-7b-chat-hf",
        "general.report_to": "tensorboard",
        "general.save_strategy": "epoch",
        "general.lora_config.target_modules": ["q_proj", "v_proj"],
        "dataset.train_file": "/mnt/data/train.jsonl",
        "dataset.validation_file": "/mnt/data/held.jsonl",
        "dataset.validation_split_percentage": 0,
        "training.strategy": "FSDP",
    },
    "every_key": {
        "general.base_model": "EleutherAI/gpt-j-6b",
        "general.tokenizer_name": "EleutherAI/gpt-j-6b",
        "dataset.shuffle": False,
        "dataset.mask_input": True,
        "dataset.mask_response": True,
        "dataset.max_source_length": 384,
        "training.batch_size": 4,
        "training.max_train_steps": 10,
        "training.lr_scheduler": "cosine",
        "training.mixed_precision": "no",
        "training.gradient_accumulation_steps": 2,
        "training.logging_steps": 5,
        "training.seed": 7,
    },
    "old_gpt_j_6b": {
        "general.base_model": "EleutherAI/gpt-j-6b",
        "dataset.shuffle": False,
        "dataset.max_length": 512,
        "training.mixed_precision": "no",
    },
    "old_gpt_j_6b_gpu": GPU | {"general.base_model": "EleutherAI/gpt-j-6b"},
    "old_mistral_7b_fsdp": GPU
    | {
        "general.base_model": "mistralai/Mistral-7B-v0.1",
        "general.lora_config.target_modules": ALL_LAYERS,
        "general.enable_gradient_checkpointing": True,
        "training.torch_optimizer": "RMSprop",
        "training.lr_scheduler": "constant_with_warmup",
        "training.weight_decay": 0.1,
        "training.mixed_precision": "fp16",
        "training.num_training_workers": 4,
        "training.resources_per_worker.CPU": 4,
        "training.strategy": "FSDP",
    },
    "old_mpt_7b_full": {
        "general.base_model": "mosaicml/mpt-7b",
        "general.config.trust_remote_code": True,
        "general.lora_config": None,
    },
}
"""File → where it differs from FAMILY."""

GPT, CHECKPOINTS, HPU_MODE = "General.gpt_base_model", "General.checkpoint_dir", "Training.hpu_execution_mode"

NAMED: dict[str, list[str]] = {
    "bloom_560m": [GPT, HPU_MODE],
    "every_key": [GPT, "Dataset.max_seq_length", HPU_MODE],
    "llama_2_7b_chat_gpu": [GPT, "General.save_strategy"],
    "old_gpt_j_6b": [GPT, "General.deltatuner_config", CHECKPOINTS],
    "old_gpt_j_6b_gpu": [GPT, CHECKPOINTS],
    "old_mistral_7b_fsdp": [GPT, CHECKPOINTS],
    "old_mpt_7b_full": ["Dataset.preprocessing_num_workers", GPT],
}
"""File → keys that do not do what they once did. The other files have gpt_base_model only."""

OTHER_NOTES = {
    "every_key": ["Training.optimizer: adamw_hf is gone from current releases; AdamW takes its place"],
    "old_mpt_7b_full": ["Training.max_train_step: unknown key; did you mean Training.max_train_steps?"],
}

REFUSED = {
    "hpu": {
        "Training.device": "HPU (Gaudi) is not supported: use GPU for Intel GPUs, or CPU",
        "Training.resources_per_worker.HPU": "",
    },
    "old_hpu": {
        "Training.device": "HPU (Gaudi) is not supported: use GPU for Intel GPUs, or CPU",
        "Training.resources_per_worker.HPU": "",
        "Training.accelerate_mode": "HPU modes are not supported: use GPU_FSDP",
    },
    "deepspeed": {"Training.accelerate_mode": "DEEPSPEED and HPU modes are not supported: use GPU_FSDP"},
    "old_deepspeed": {"Training.accelerate_mode": "DEEPSPEED and HPU modes are not supported: use GPU_FSDP"},
    "token": {"General.config.use_auth_token": "put it into a Secret"},
}
"""File → key → words that say what to use instead."""


def value(config: TrainerConfig, key: str) -> Any:
    """The value under a dotted name; None below a part that is absent."""
    found: Any = config
    for name in key.split("."):
        found = None if found is None else getattr(found, name)
    return found


def note(key: str) -> list[str]:
    """What is said about a key, if anything is: a key may have come to have an effect."""
    if key in OBSOLETE_KEYS:
        return [f"{key}: obsolete and ignored: {OBSOLETE_KEYS[key]}"]
    return [f"{key}: no effect in this release: {INACTIVE_KEYS[key]}"] if key in INACTIVE_KEYS else []


def test_every_file_has_its_test() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == set(VALUES)
    assert {path.stem for path in (FOLDER / "refused").glob("*.yaml")} == set(REFUSED)


@pytest.mark.parametrize("file", VALUES)
def test_a_file_means_what_it_says(file: str) -> None:
    config = load_config(FOLDER / f"{file}.yaml").config
    wanted = FAMILY | VALUES[file]
    if value(config, "general.lora_config") is None:
        wanted = {key: wanted[key] for key in wanted if not key.startswith("general.lora_config.")}
    assert {key: value(config, key) for key in wanted} == wanted


@pytest.mark.parametrize("file", VALUES)
def test_exactly_what_has_changed_is_named(file: str) -> None:
    path = FOLDER / f"{file}.yaml"
    lines = [line for key in NAMED.get(file, [GPT]) for line in note(key)] + OTHER_NOTES.get(file, [])
    assert sorted(load_config(path).warnings) == sorted(f"{path}: {line}" for line in lines)


@pytest.mark.parametrize("file", REFUSED)
def test_what_is_not_supported_is_refused_with_what_to_use_instead(file: str) -> None:
    path = FOLDER / "refused" / f"{file}.yaml"
    with pytest.raises(ConfigError) as error:
        load_config(path)
    found = dict(line.removeprefix(f"{path}: ").split(": ", 1) for line in error.value.errors)
    assert set(found) == set(REFUSED[file])
    assert all(words in found[key] for key, words in REFUSED[file].items())
    assert "hf_not_a_token" not in str(error.value)
