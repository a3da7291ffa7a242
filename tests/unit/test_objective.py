"""Only supervised finetuning is supported: a file for DPO or RLHF is refused in words, by trainer, convert and API."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError
from ruamel.yaml import YAML
from tests.support.jobs import finetune_job

from finetune_client import convert, grammar
from finetune_client.validate import check_object
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_trainer.config.objective import OBJECTIVE_MESSAGE
from finetune_trainer.config.yaml_file import load_config
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

OTHERS: dict[str, dict[str, Any]] = {
    "finetuning_model": {"Training": {"finetuning_model": "dpo", "beta": 0.1}},
    "FinetuningModel": {"Training": {"FinetuningModel": "DPO"}},
    "use_dpo": {"Training": {"use_dpo": True, "beta": 0.1}},
    "trainer_type": {"General": {"trainer_type": "dpo"}},
    "beta alone": {"Training": {"beta": 0.1}},
}
"""Keys of llm-on-ray's own files for DPO, which the API knows."""

UNKNOWN: dict[str, dict[str, Any]] = {
    "ppo.conf": {"General": {"rm_name": "EleutherAI/gpt2"}, "Training": {"kl_coeff": 0.2}},
    "section": {"RLHF": {"epochs": 1}},
    "section in lower case": {"dpo": {"epochs": 1}},
}
"""What the API drops unread, or refuses with strict validation."""

SUPERVISED: dict[str, dict[str, Any]] = {
    "sft": {"Training": {"finetuning_model": "SFT", "use_dpo": False, "beta": None}},
    "null": {"Training": {"finetuning_model": None, "use_dpo": None}, "General": {"trainer_type": None}},
    "default": {"General": {"trainer_type": "default"}},
}


def write(folder: Path, sections: dict[str, Any]) -> str:
    given: dict[str, Any] = {"General": {"base_model": "gpt2"}, "Dataset": {"train_file": "rows.jsonl"}}
    path = folder / "conf.yaml"
    YAML().dump({name: given.get(name, {}) | sections.get(name, {}) for name in given | sections}, path)
    return str(path)


def convert_file(path: str) -> convert.Converted:
    parser = argparse.ArgumentParser()
    grammar.add_convert_options(parser)
    return convert.convert(parser.parse_args(["--config_file", path]))


@pytest.mark.parametrize("case", OTHERS | UNKNOWN)
def test_another_objective_is_refused_by_trainer_and_convert(tmp_path: Path, case: str) -> None:
    sections = (OTHERS | UNKNOWN)[case]
    path = write(tmp_path, sections)
    keys = [name if name in ("RLHF", "dpo") else f"{name}.{key}" for name, section in sections.items() for key in section]
    for read in (load_config, convert_file):
        with pytest.raises(ConfigError) as error:
            read(path)
        assert sorted(error.value.errors) == sorted(f"{path}: {key}: {OBJECTIVE_MESSAGE}" for key in keys)


@pytest.mark.parametrize("case", OTHERS)
def test_another_objective_is_refused_by_the_api(case: str) -> None:
    sections: dict[str, Any] = {f"{name}__{key}": value for name, keys in OTHERS[case].items() for key, value in keys.items()}
    job = finetune_job("job", **sections)
    assert any(OBJECTIVE_MESSAGE in str(finding) for finding in check_object(job))
    with pytest.raises(ValidationError, match="only supervised finetuning is supported"):
        FinetuneJob.model_validate(job)


@pytest.mark.parametrize("case", SUPERVISED)
def test_supervised_finetuning_under_its_names_is_accepted_in_silence(tmp_path: Path, case: str) -> None:
    path = write(tmp_path, SUPERVISED[case])
    assert load_config(path).warnings == ()
    converted = convert_file(path)
    assert converted.notes == ()
    assert check_object(converted.manifest) == []


@pytest.mark.parametrize("key", ["token", "use_auth_token"])
@pytest.mark.parametrize("value", [None, False, ""])
def test_no_token_under_both_names_is_accepted_in_silence(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, {"General": {"base_model": "gpt2", "config": {"trust_remote_code": False, key: value}}})
    loaded = load_config(path)
    assert (getattr(loaded.config.general.config, key), loaded.warnings) == (None, ())
    converted = convert_file(path)
    assert converted.notes == ()
    assert check_object(converted.manifest) == []


@pytest.mark.parametrize("key", ["token", "use_auth_token"])
@pytest.mark.parametrize("value", ["hf_secret", True])
def test_token_under_both_names_is_refused_without_being_printed(tmp_path: Path, key: str, value: Any) -> None:
    path = write(tmp_path, {"General": {"base_model": "gpt2", "config": {key: value}}})
    with pytest.raises(ConfigError, match=f"General.config.{key}: .*put it into a Secret") as error:
        load_config(path)
    assert "hf_secret" not in str(error.value)
    (note,) = convert_file(path).notes
    assert f"General.config.{key}: left out: a token does not belong into a job" in note
    assert "hf_secret" not in note
