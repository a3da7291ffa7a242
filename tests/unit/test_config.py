"""The finetuning YAML: what is read in which spelling, and what the user is told about it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from finetune_trainer.config.notes import config_notes
from finetune_trainer.config.obsolete_keys import INACTIVE_KEYS, OBSOLETE_KEYS
from finetune_trainer.config.optimizer_names import OPTIMIZERS, RENAMED_OPTIMIZERS
from finetune_trainer.config.schema import TrainerConfig

MINIMAL = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}}


def config(**sections: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({name: MINIMAL.get(name, {}) | keys for name, keys in (MINIMAL | sections).items()})


def test_defaults_are_those_of_the_documentation() -> None:
    training, general = config().training, config().general
    assert (training.device, training.accelerate_mode, training.strategy) == ("cpu", "DDP", "DDP")
    assert (training.num_training_workers, training.batch_size, training.epochs, training.seed) == (1, 4, 3, 42)
    assert (training.optimizer, training.torch_optimizer, training.lr_scheduler) == ("AdamW", "AdamW", "linear")
    assert (training.mixed_precision, general.save_strategy, general.lora_config) == ("no", "no", None)
    assert general.config.trust_remote_code is False


def test_sections_are_read_in_both_spellings() -> None:
    lower = {name.lower(): keys for name, keys in (MINIMAL | {"Training": {"epochs": 7}}).items()}
    assert TrainerConfig.model_validate(lower) == config(Training={"epochs": 7})


@pytest.mark.parametrize("word", [False, "no", "No", "NO", "false", "False"])
def test_a_bare_no_of_any_yaml_parser_means_no(word: Any) -> None:
    read = config(General={"save_strategy": word}, Training={"mixed_precision": word})
    assert (read.general.save_strategy, read.training.mixed_precision) == ("no", "no")


@pytest.mark.parametrize("word", [0, True, "off", "", "none"])
def test_what_only_looks_like_no_is_refused(word: Any) -> None:
    with pytest.raises(ValidationError, match="'no', 'fp16' or 'bf16'"):
        config(Training={"mixed_precision": word})


@pytest.mark.parametrize(
    ("mode", "device", "strategy"),
    [
        ("CPU_DDP", "CPU", "DDP"),
        ("cpu_ddp", "cpu", "DDP"),
        ("DDP", "GPU", "DDP"),
        ("GPU_FSDP", "gpu", "FSDP"),
        ("FSDP", "CPU", "FSDP"),
    ],
)
def test_modes_and_devices_are_read_in_any_case(mode: str, device: str, strategy: str) -> None:
    gpus = int(device.upper() == "GPU")
    training = config(Training={"accelerate_mode": mode, "device": device, "resources_per_worker": {"GPU": gpus}}).training
    assert (training.strategy, training.device) == (strategy, device.lower())


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        ("AdamW", "AdamW"),
        ("SGD", "SGD"),
        ("RMSprop", "RMSprop"),
        ("NAdam", "NAdam"),
        ("adamw_torch", "AdamW"),
        ("ADAMW_Torch_Fused", "AdamW"),
        ("adamw_hf", "AdamW"),
        ("adafactor", "Adafactor"),
        ("rmsprop", "RMSprop"),
    ],
)
def test_optimizers_are_read_under_the_names_of_torch_and_of_hugging_face(name: str, optimizer: str) -> None:
    assert config(Training={"optimizer": name}).training.torch_optimizer == optimizer


@pytest.mark.parametrize("name", sorted(set(OPTIMIZERS.values())))
def test_every_optimizer_is_a_class_of_torch_under_its_own_name(name: str) -> None:
    """Which torch has; the trainer's tests make them."""
    assert config(Training={"optimizer": name}).training.torch_optimizer == name


@pytest.mark.parametrize("name", ["magic", "adamw_bnb_8bit", " adamw", ""])
def test_an_unknown_optimizer_is_refused_with_the_names_that_there_are(name: str) -> None:
    with pytest.raises(ValidationError, match="unknown optimizer; use one of ASGD, Adadelta, Adafactor, Adagrad, Adam, AdamW,"):
        config(Training={"optimizer": name})


@pytest.mark.parametrize("name", [*RENAMED_OPTIMIZERS, "AdamW_HF"])
def test_the_user_is_told_of_an_optimizer_that_is_gone(name: str) -> None:
    assert config_notes(config(Training={"optimizer": name})) == [
        f"Training.optimizer: {name} is gone from current releases; AdamW takes its place"
    ]


@pytest.mark.parametrize("name", sorted(OPTIMIZERS.keys() - set(RENAMED_OPTIMIZERS)))
def test_nothing_is_told_of_an_optimizer_that_is_there(name: str) -> None:
    assert config_notes(config(Training={"optimizer": name})) == []


@pytest.mark.parametrize("key", OBSOLETE_KEYS)
def test_obsolete_keys_are_accepted_and_told(key: str) -> None:
    section, name = key.split(".")
    value: Any = {"deltatuner_config": {}, "gpt_base_model": True, "max_seq_length": 512}.get(name, "text")
    read = config(**{section: {name: value}})
    assert getattr(getattr(read, section.lower()), name) == value
    assert config_notes(read) == [f"{key}: obsolete and ignored: {OBSOLETE_KEYS[key]}"]


@pytest.mark.parametrize("key", OBSOLETE_KEYS)
def test_an_obsolete_key_that_is_empty_is_not_told(key: str) -> None:
    section, name = key.split(".")
    assert config_notes(config(**{section: {name: None}})) == []


INACTIVE: dict[str, Any] = {
    "General.report_to": "tensorboard",
    "General.resume_from_checkpoint": "/checkpoint",
    "General.save_strategy": "epoch",
    "Dataset.block_size": 1024,
    "Dataset.padding": False,
}


@pytest.mark.parametrize("key", INACTIVE_KEYS)
def test_a_key_without_effect_is_told_when_it_is_set_to_anything_but_its_default(key: str) -> None:
    section, name = key.split(".")
    told = config(**{section: {name: INACTIVE[key]}})
    assert config_notes(told) == [f"{key}: no effect in this release: {INACTIVE_KEYS[key]}"]
    default = getattr(getattr(config(), section.lower()), name)
    assert config_notes(config(**{section: {name: default}})) == []


@pytest.mark.parametrize("cpus", [0, -1, 1025, float("nan")])
def test_cpus_that_make_no_request_are_refused(cpus: float) -> None:
    with pytest.raises(ValidationError, match=r"resources_per_worker\.CPU"):
        config(Training={"resources_per_worker": {"CPU": cpus}})


@pytest.mark.parametrize("cpus", [0.0001, 0.5, 32, 1024])
def test_cpus_may_be_a_fraction(cpus: float) -> None:
    found = config(Training={"resources_per_worker": {"CPU": cpus}}).training.resources_per_worker.CPU
    assert found == cpus
