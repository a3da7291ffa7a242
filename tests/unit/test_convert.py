"""`finetune convert`: a finetuning YAML of llm-on-ray becomes a FinetuneJob that means the same."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML
from tests.support.builders import DATA, NAMESPACE, UID
from tests.support.chart import ROOT

from finetune_client import cli, convert, grammar
from finetune_client.manifest import read_documents
from finetune_operator.api.schema import crd_schema, violations
from finetune_operator.api.v1alpha1 import FinetuneJob
from finetune_trainer.config.obsolete_keys import OBSOLETE_KEYS
from finetune_trainer.config.yaml_file import load_config
from finetune_trainer.errors import ConfigError

PLAIN_SAMPLES = [*(ROOT / "config_samples" / "finetune").rglob("*.yaml"), *(DATA / "llm_on_ray").glob("*.yaml")]
MINIMAL = "General: {base_model: gpt2}\nDataset: {train_file: rows.jsonl}\n"
SECRET = "hf_0123456789"


class Printed(NamedTuple):
    """What the command printed."""

    job: dict[str, Any]
    """stdout, as a parser of YAML 1.2 reads it."""
    out: str
    err: str

    @property
    def config(self) -> Any:
        return self.job["spec"]["config"]


Convert = Callable[..., Printed]


def parse(*arguments: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    grammar.add_convert_options(parser)
    return parser.parse_args(arguments)


@pytest.fixture
def converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Convert:
    """Convert a YAML text, made of sections or given as such."""

    def run(text: str = "", *options: str, general: str = "", dataset: str = "", training: str = "") -> Printed:
        sections = (
            f"General: {{base_model: gpt2, {general}}}\n"
            f"Dataset: {{train_file: rows.jsonl, {dataset}}}\n"
            f"Training: {{epochs: 3, {training}}}\n"
        )
        file = tmp_path / "conf.yaml"
        file.write_text(text or sections, encoding="utf-8")
        assert convert.run(parse("--config_file", str(file), *options)) == 0
        out, err = capsys.readouterr()
        return Printed(load_yaml_text(out), out, err.replace(str(file), "conf.yaml"))

    return run


def load_yaml_text(text: str) -> Any:
    return YAML(typ="safe", pure=True).load(text)


def errors(tmp_path: Path, text: str, *options: str) -> list[str]:
    """What is wrong, without the file's name before it."""
    file = tmp_path / "conf.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as error:
        convert.run(parse("--config_file", str(file), *options))
    assert all(line.startswith(f"{file}: ") for line in error.value.errors)
    return [line.removeprefix(f"{file}: ") for line in error.value.errors]


@pytest.mark.parametrize("sample", PLAIN_SAMPLES, ids=lambda path: path.stem)
def test_the_job_trains_what_the_yaml_says(sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert.run(parse("--config_file", str(sample))) == 0
    text = capsys.readouterr().out
    raw = load_yaml_text(text)
    assert list(violations(crd_schema(), raw)) == []
    job = FinetuneJob.model_validate(raw | {"metadata": raw["metadata"] | {"namespace": NAMESPACE, "uid": UID}})
    wanted = load_config(sample).config.model_dump()
    for section, keys in {"dataset": ("train_file", "validation_file"), "general": ("base_model",)}.items():
        for key in keys:
            path = wanted[section][key]
            if path and path.startswith("/"):
                wanted[section][key] = Path(path).name
    assert job.spec.config.model_dump() == wanted

    manifest = tmp_path / "job.yaml"
    manifest.write_text(text, encoding="utf-8")
    (document,) = read_documents(str(manifest))
    assert (document.value, document.problems) == (raw, ())


def test_there_are_samples_of_both_kinds() -> None:
    assert {"finetune", "gpt_j_6b", "llm_on_ray"} == {path.parent.name for path in PLAIN_SAMPLES}


def test_keys_and_values_stay_as_they_are_written(converted: Convert) -> None:
    text = """
Training:
  accelerate_mode: CPU_DDP
  device: cpu
  optimizer: adamw_torch
  resources_per_worker: {CPU: 0.5}
General:
  output_dir: /tmp/llm-ray/output
  base_model: gpt2
  resume_from_checkpoint: /tmp/llm-ray/output/checkpoint-3
  checkpoint_dir: /tmp/llm-ray/checkpoint
  lora_config: {target_modules: [c_attn], r: 8}
Dataset:
  validation_file: null
  train_file: sub/rows.jsonl
"""
    config = converted(text).config
    assert config == load_yaml_text(text)
    assert [list(config), list(config["General"])] == [
        ["Training", "General", "Dataset"],
        ["output_dir", "base_model", "resume_from_checkpoint", "checkpoint_dir", "lora_config"],
    ]


def test_sections_get_the_spelling_of_the_resource(converted: Convert) -> None:
    printed = converted(MINIMAL.lower() + "training: {epochs: 2}")
    assert (list(printed.config), printed.err) == (["General", "Dataset", "Training"], "")
    assert converted(MINIMAL + "general: {base_model: other}").config["General"] == {"base_model": "gpt2"}


@pytest.mark.parametrize(
    ("section", "written", "printed"),
    [
        ("training", 'batch_size: "3"', ("batch_size", 3)),
        ("training", 'learning_rate: "1e-5"', ("learning_rate", 1e-05)),
        ("training", "lr_scheduler: Linear", ("lr_scheduler", "linear")),
        ("training", "mixed_precision: No", ("mixed_precision", "no")),
        ("training", "mixed_precision: no", ("mixed_precision", "no")),
        ("training", "mixed_precision: false", ("mixed_precision", False)),
        ("dataset", "group: yes", ("group", True)),
        ("dataset", "padding_side: Right", ("padding_side", "right")),
        ("general", 'save_strategy: "False"', ("save_strategy", "no")),
        (
            "general",
            "deltatuner_config: {a: {day: 2020-01-02, 7: on}}",
            ("deltatuner_config", {"a": {"day": "2020-01-02", "7": "on"}}),
        ),
    ],
)
def test_what_only_the_trainer_takes_is_printed_as_it_reads_it(
    converted: Convert, section: str, written: str, printed: tuple[str, Any]
) -> None:
    """The API server converts no types; a word that it does not know, or text for a number, would be refused."""
    key, value = printed
    found = converted(**{section: written}).config[section.capitalize()][key]
    assert (found, type(found)) == (value, type(value))


def test_unknown_keys_are_left_out_and_named(converted: Convert) -> None:
    printed = converted(general="base_modle: x, lora_config: {rank: 3}", training="batchsize: 7")
    assert printed.config["General"] == {"base_model": "gpt2", "lora_config": {}}
    assert printed.config["Training"] == {"epochs": 3}
    assert printed.err.splitlines() == [
        "conf.yaml: General.base_modle: left out: unknown field; did you mean base_model?",
        "conf.yaml: General.lora_config.rank: left out: unknown field",
        "conf.yaml: Training.batchsize: left out: unknown field; did you mean batch_size?",
    ]


def test_obsolete_keys_stay_and_are_named(converted: Convert) -> None:
    printed = converted(general="gpt_base_model: true", training='deepspeed_config_file: ""')
    assert printed.config["General"]["gpt_base_model"] is True
    assert printed.config["Training"]["deepspeed_config_file"] == ""
    reason = OBSOLETE_KEYS["General.gpt_base_model"]
    assert printed.err == f"conf.yaml: General.gpt_base_model: obsolete and ignored: {reason}\n"


@pytest.mark.parametrize("section", ["General", "general"])
def test_a_token_is_never_printed(converted: Convert, section: str) -> None:
    rest = "Dataset: {train_file: rows.jsonl}"
    text = f"{section}: {{base_model: gpt2, config: {{trust_remote_code: false, use_auth_token: {SECRET}}}}}\n{rest}\n"
    printed = converted(text)
    assert printed.config["General"]["config"] == {"trust_remote_code": False}
    assert SECRET not in printed.out + printed.err
    assert "kubectl create secret" in printed.err
    assert "--token-secret NAME[/KEY]" in printed.err

    printed = converted(text, "--token-secret", "hub/token-of-me")
    assert printed.job["spec"]["model"] == {"tokenSecretRef": {"name": "hub", "key": "token-of-me"}}
    assert "Secret hub/token-of-me takes its place" in printed.err


def test_a_token_is_not_printed_with_errors_either(tmp_path: Path) -> None:
    config = f"{{use_auth_token: {SECRET}}}"
    found = errors(tmp_path, f"General: {{base_model: '', config: {config}}}\nDataset: {{train_file: rows.jsonl}}")
    assert found == ["General.base_model: String should have at least 1 character"]


@pytest.mark.parametrize("value", ["null", '""'])
def test_no_token_is_no_matter(converted: Convert, value: str) -> None:
    printed = converted(general=f"config: {{use_auth_token: {value}}}")
    assert (list(printed.config["General"]["config"]), printed.err) == (["use_auth_token"], "")


@pytest.mark.parametrize("path", ["/home/me/rows.jsonl", "~/rows.jsonl", "../rows.jsonl", "a/../b/rows.jsonl"])
@pytest.mark.parametrize("key", ["train_file", "validation_file"])
def test_a_data_file_of_this_machine_is_looked_for_at_the_root_of_the_data_set(converted: Convert, key: str, path: str) -> None:
    paths = {"train_file": "train.jsonl"} | {key: path}
    dataset = ", ".join(f"{name}: {value}" for name, value in paths.items())
    text = f"General: {{base_model: gpt2}}\nDataset: {{{dataset}}}\n"
    printed = converted(text)
    assert printed.config["Dataset"] == paths | {key: "rows.jsonl"}
    says = f"conf.yaml: Dataset.{key}: {path} becomes rows.jsonl, which must lie at the root of the data set's claim"
    assert printed.err == f"{says}: name it with --dataset-claim NAME[/SUBPATH]\n"
    assert converted(text, "--dataset-claim", "data/sets").err == f"{says}, data/sets\n"
    assert "rows.jsonl, which must be a key of ConfigMap rows" in converted(text, "--dataset-config-map", "rows").err


@pytest.mark.parametrize("path", ["rows.jsonl", "a/b/rows.jsonl", "..rows/rows.jsonl", "./rows.jsonl"])
def test_a_relative_data_file_stays(converted: Convert, path: str) -> None:
    printed = converted(f"General: {{base_model: gpt2}}\nDataset: {{train_file: {path}}}\n")
    assert (printed.config["Dataset"]["train_file"], printed.err) == (path, "")


def test_two_data_files_do_not_become_one(tmp_path: Path) -> None:
    files = "{train_file: /train/rows.jsonl, validation_file: /held/rows.jsonl}"
    (error,) = errors(tmp_path, f"General: {{base_model: gpt2}}\nDataset: {files}")
    assert "Dataset.train_file and Dataset.validation_file would both be rows.jsonl" in error


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/models/gpt-j-6b", "gpt-j-6b"),
        ("/models/gpt-j-6b/", "gpt-j-6b"),
        ("~/gpt-j-6b", "gpt-j-6b"),
        ("./gpt-j-6b", "gpt-j-6b"),
        ("../gpt-j-6b", "gpt-j-6b"),
        ("local/gpt-j-6b", "gpt-j-6b"),
        (".", "here"),
    ],
)
def test_a_model_folder_is_looked_for_on_a_claim(
    converted: Convert, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, model: str, name: str
) -> None:
    (tmp_path / "here" / "local" / "gpt-j-6b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    text = f"General: {{base_model: {model}, tokenizer_name: {model}}}\nDataset: {{train_file: rows.jsonl}}\n"
    printed = converted(text)
    assert printed.config["General"] == {"base_model": name, "tokenizer_name": None}
    assert f"{model} becomes {name}, a name only" in printed.err
    assert "--model-claim NAME[/SUBPATH]" in printed.err

    printed = converted(text, "--model-claim", "models/a/b")
    assert printed.job["spec"]["model"] == {"persistentVolumeClaim": {"claimName": "models", "subPath": "a/b"}}
    assert printed.err.endswith("the model is read from claim models/a/b\n")


@pytest.mark.parametrize(
    ("tokenizer", "says"),
    [("/tokenizers/neox", "/tokenizers/neox must be a folder in the image"), ("EleutherAI/gpt-neox-20b", "")],
)
def test_a_tokenizer_stays_and_its_folder_must_be_in_the_image(converted: Convert, tokenizer: str, says: str) -> None:
    printed = converted(general=f"tokenizer_name: {tokenizer}")
    assert printed.config["General"] == {"base_model": "gpt2", "tokenizer_name": tokenizer}
    assert (says in printed.err, bool(printed.err)) == (True, bool(says))


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("gpt2_cpu.yaml", "gpt2-cpu"),
        ("dir/Llama 2.7B.yaml", "llama-2-7b"),
        ("7b.yaml", "finetune-7b"),
        ("__.yaml", "finetune"),
        (f"{'a' * 39}-b.yaml", "a" * 39),
        ("ü.yaml", "finetune"),
    ],
)
def test_the_job_is_named_after_the_file(file: str, name: str) -> None:
    assert convert.job_name(file) == name


@given(st.text(st.characters(exclude_characters="/\0"), min_size=1))
def test_every_files_name_makes_a_name(stem: str) -> None:
    name = convert.job_name(f"{stem}.yaml")
    assert re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", name)
    assert len(name) <= 40


@pytest.mark.parametrize(
    ("options", "part", "value"),
    [
        ([], "output", {"size": "10Gi"}),
        (["--output-size", "20Gi"], "output", {"size": "20Gi"}),
        (["--output-access-mode", "ReadWriteMany"], "output", {"size": "10Gi", "accessModes": ["ReadWriteMany"]}),
        (["--output-claim", "out"], "output", {"persistentVolumeClaim": {"claimName": "out"}}),
        (["--dataset-claim", "data"], "dataset", {"persistentVolumeClaim": {"claimName": "data"}}),
        (["--dataset-claim", "data/a/b"], "dataset", {"persistentVolumeClaim": {"claimName": "data", "subPath": "a/b"}}),
        (["--dataset-config-map", "rows"], "dataset", {"configMap": {"name": "rows"}}),
        (["--model-claim", "m"], "model", {"persistentVolumeClaim": {"claimName": "m"}}),
        (["--token-secret", "hub"], "model", {"tokenSecretRef": {"name": "hub"}}),
        (["--memory", "32Gi"], "workers", {"memory": "32Gi"}),
        (["--image", "registry.example/trainer:2"], "image", "registry.example/trainer:2"),
    ],
)
def test_options_say_where_things_are(converted: Convert, options: list[str], part: str, value: Any) -> None:
    spec = converted("", *options).job["spec"]
    assert spec == {"config": spec["config"], "output": {"size": "10Gi"}} | {part: value}


def test_an_accelerator_is_for_gpus(converted: Convert, tmp_path: Path) -> None:
    gpu = "device: GPU, accelerate_mode: GPU_DDP, resources_per_worker: {GPU: 1}"
    assert converted("", "--accelerator", "xe", training=gpu).job["spec"]["accelerator"] == "xe"
    assert errors(tmp_path, MINIMAL, "--accelerator", "xe") == ["spec: accelerator goes with config.Training.device GPU"]


@pytest.mark.parametrize(
    ("options", "key"),
    [
        (["--name", "A_b"], "metadata.name"),
        (["--name", ""], "metadata.name"),
        (["--memory", "lots"], "spec.workers.memory"),
        (["--output-size", "10 GB"], "spec.output.size"),
        (["--model-claim", "models/../etc"], "spec.model.persistentVolumeClaim.subPath"),
        (["--dataset-claim", "/data"], "spec.dataset.persistentVolumeClaim.claimName"),
        (["--image", "-v /:/host"], "spec.image"),
        (["--output-claim", "out", "--output-access-mode", "ReadWriteMany"], "spec.output"),
    ],
)
def test_an_option_that_makes_no_valid_job_is_refused(tmp_path: Path, options: list[str], key: str) -> None:
    assert {line.partition(": ")[0] for line in errors(tmp_path, MINIMAL, *options)} == {key}


@pytest.mark.parametrize("options", ["--output-claim out --output-size 1Gi", "--dataset-claim a --dataset-config-map b", ""])
def test_options_that_exclude_each_other_are_wrong_usage(options: str) -> None:
    with pytest.raises(SystemExit):
        parse(*(["--config_file", "conf.yaml", *options.split()] if options else []))


def test_every_error_is_named_at_once_and_as_by_the_trainer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "conf.yaml"
    file.write_text(
        "General: {lora_config: {r: 0}}\nDataset: {train_file: a}\nTraining: {device: HPU, accelerate_mode: DEEPSPEED}\n"
    )
    with pytest.raises(ConfigError) as error:
        load_config(file)
    assert len(error.value.errors) == 4
    assert cli.main(["convert", "--config_file", str(file)]) == 2
    assert capsys.readouterr() == ("", f"{error.value}\n")


def test_what_only_the_api_server_limits_is_refused_too(tmp_path: Path) -> None:
    many = ", ".join(f"k{index}: 1" for index in range(17))
    text = f"General: {{base_model: gpt2, deltatuner_config: {{{many}}}}}\nDataset: {{train_file: rows.jsonl}}\n"
    (error,) = errors(tmp_path, text)
    assert error.startswith("spec.config.General.deltatuner_config: ")


TEXTS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(
    ["no", "Off", "y", "null", "~", "1e-5", "0x1f", "017", "0o17", "1_000", "1:30", "2026-01-02", ".nan", "=", "<<", "10Gi",
     "5Mi", "- a", "a: b", "a #b", "%a", "@a", "`a", "a\u2028b", "a\x85b", "\ufeff", "{{x}}", "1.", "+1", "0b1", "12e03"]
)  # fmt: skip
VALUES = st.recursive(
    TEXTS | st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS.filter(lambda key: key != "<<"), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_every_yaml_parser_reads_the_same(tmp_path_factory: pytest.TempPathFactory, value: Any) -> None:
    """YAML 1.2 as the trainer reads it, YAML 1.1, and what kubectl understands by it."""
    manifest = {"value": value}
    text = convert.render(manifest)
    assert load_yaml_text(text) == manifest
    old = YAML(typ="safe", pure=True)
    old.version = "1.1"
    assert old.load(text) == manifest
    file = tmp_path_factory.getbasetemp() / "value.yaml"
    file.write_text(text, encoding="utf-8")
    (document,) = read_documents(str(file))
    assert (document.value, document.problems) == (manifest, ())


def test_nothing_is_written_as_an_anchor(converted: Convert) -> None:
    shared = "target_modules: &names [c_attn]"
    out = converted(general=f"lora_config: {{{shared}}}, deltatuner_config: {{a: *names, b: *names}}").out
    assert not {"&", "*"} & set(out)
