"""The spec's models: what they take, what they refuse, and that they name every error at once."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError
from tests.support.builders import make_job, raw_job

from finetune_operator.api.v1alpha1 import FinetuneJob, Reason
from finetune_trainer.config import OBSOLETE_KEYS, OPTIMIZERS, TrainerConfig
from finetune_trainer.progress import FailureReason

MINIMAL = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}}


def config(**sections: Any) -> TrainerConfig:
    return TrainerConfig.model_validate({name: MINIMAL.get(name, {}) | keys for name, keys in (MINIMAL | sections).items()})


def problems(spec: dict[str, Any]) -> dict[str, str]:
    """Key path → message of each error."""
    with pytest.raises(ValidationError) as error:
        FinetuneJob.model_validate(raw_job(spec=spec))
    return {".".join(map(str, item["loc"])): item["msg"] for item in error.value.errors()}


def test_every_error_is_named_at_once_with_its_key() -> None:
    found = problems(
        {
            "config": {
                "General": {"base_model": "", "lora_config": {"r": 0}},
                "Dataset": {"train_file": None, "max_length": 1},
                "Training": {"device": "HPU", "optimizer": "magic", "num_training_workers": 0},
            },
            "output": {"size": "ten"},
            "workers": {"memory": "a lot"},
        }
    )
    assert set(found) == {
        "spec.config.General.base_model",
        "spec.config.General.lora_config.r",
        "spec.config.Dataset.train_file",
        "spec.config.Dataset.max_length",
        "spec.config.Training.device",
        "spec.config.Training.optimizer",
        "spec.config.Training.num_training_workers",
        "spec.output.size",
        "spec.workers.memory",
    }
    assert "HPU (Gaudi) is not supported" in found["spec.config.Training.device"]
    assert "AdamW" in found["spec.config.Training.optimizer"]


@pytest.mark.parametrize(
    ("spec", "key", "says"),
    [
        ({"output": {"persistentVolumeClaim": {"claimName": "x"}}}, "output", "exactly one of"),
        ({"output": {"size": None}}, "output", "exactly one of"),
        (
            {"output": {"size": None, "persistentVolumeClaim": {"claimName": "x"}, "deleteWithJob": True}},
            "output",
            "deleteWithJob",
        ),
        (
            {"output": {"size": None, "persistentVolumeClaim": {"claimName": "x"}, "storageClassName": "s"}},
            "output",
            "go with size",
        ),
        ({"dataset": {"configMap": {"name": "a"}, "persistentVolumeClaim": {"claimName": "b"}}}, "dataset", "not both"),
        (
            {"dataset": {"persistentVolumeClaim": {"claimName": "b", "subPath": "/etc"}}},
            "dataset.persistentVolumeClaim.subPath",
            "",
        ),
        ({"accelerator": "xe"}, "", "device GPU"),
        ({"config": {"Training": {"resources_per_worker": {"GPU": 1}}}}, "config.Training", "forbids"),
        ({"config": {"Training": {"device": "GPU", "accelerate_mode": "DDP"}}}, "config.Training", "at least 1"),
        ({"config": {"Training": {"accelerate_mode": "GPU_DDP"}}}, "config.Training", "needs device GPU"),
        ({"config": {"Training": {"accelerate_mode": "DEEPSPEED"}}}, "config.Training.accelerate_mode", "use GPU_FSDP"),
        ({"image": "-v /:/host"}, "image", ""),
        ({"output": {"accessModes": []}}, "output.accessModes", ""),
    ],
)
def test_what_does_not_go_together_is_refused(spec: dict[str, Any], key: str, says: str) -> None:
    found = problems(spec)
    assert set(found) == {f"spec.{key}".rstrip(".")}
    assert says in "".join(found.values())


@pytest.mark.parametrize("path", ["..", "../x", "a/../b", "a/.."])
def test_a_sub_path_that_leaves_its_volume_is_refused(path: str) -> None:
    """The CRD says so by CEL; objects may be older than its rules."""
    assert problems({"dataset": {"persistentVolumeClaim": {"claimName": "b", "subPath": path}}})


def test_a_literal_token_is_refused_and_not_repeated() -> None:
    found = problems({"config": {"General": {"config": {"use_auth_token": "hf_verysecret"}}}})
    assert list(found) == ["spec.config.General.config.use_auth_token"]
    assert "tokenSecretRef" in found["spec.config.General.config.use_auth_token"]
    assert "hf_verysecret" not in str(found)


@pytest.mark.parametrize("name", ["a" * 41, "1a", "A", "a.b", "a-", "a_b", ""])
def test_a_name_that_makes_no_cluster_name_is_refused(name: str) -> None:
    with pytest.raises(ValidationError):
        make_job(metadata={"name": name})


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


@pytest.mark.parametrize("name", [*OPTIMIZERS, "AdamW", "SGD", "ADAMW_Torch"])
def test_optimizers_are_read_under_both_kinds_of_names(name: str) -> None:
    assert config(Training={"optimizer": name}).training.torch_optimizer in OPTIMIZERS.values()


@pytest.mark.parametrize("key", OBSOLETE_KEYS)
def test_obsolete_keys_are_accepted(key: str) -> None:
    section, name = key.split(".")
    value: Any = {"deltatuner_config": {}, "gpt_base_model": True, "max_seq_length": 512}.get(name, "text")
    assert getattr(getattr(config(**{section: {name: value}}), section.lower()), name) == value


def test_models_are_frozen() -> None:
    job = make_job()
    with pytest.raises(ValidationError):
        job.spec.config.training.epochs = 9
    with pytest.raises(ValidationError):
        job.status.phase = None


def test_keys_of_a_newer_api_server_are_ignored() -> None:
    raw = raw_job(spec={"fromTheFuture": 1})
    raw["status"] = {"fromTheFuture": 1}
    assert FinetuneJob.model_validate(raw).spec == make_job().spec


def test_every_reason_of_the_trainer_is_a_reason_of_the_job() -> None:
    assert set(get_args(FailureReason)) <= set(Reason)
