"""``finetune convert``: print a FinetuneJob made from a finetuning YAML of llm-on-ray.

Keys and values stay as the user wrote them. What cannot work in a cluster, a path of this machine or a token in the
open, is changed or left out, and reported on stderr.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pydantic import ValidationError

from finetune_client.grammar import DEFAULT_OUTPUT_SIZE, add_conversion
from finetune_client.home import at_home
from finetune_client.validate import check_object
from finetune_client.yaml_text import render
from finetune_operator.api.schema import crd_schema, format_path, unknown_fields, violations
from finetune_operator.constants import API_VERSION, KIND, MAX_JOB_NAME
from finetune_trainer.config.notes import config_notes
from finetune_trainer.config.objective import other_objectives
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.config.yaml_file import read_mapping
from finetune_trainer.errors import ConfigError

DATA_FILES = ("train_file", "validation_file")

Object = dict[str, Any]


@dataclass(frozen=True)
class Converted:
    """A FinetuneJob, and notes for its user."""

    manifest: Object
    notes: tuple[str, ...]
    """What was changed or left out and what has no effect; one line each, with the file's name."""


def run(options: argparse.Namespace) -> int:
    """Print the job on stdout and the notes on stderr; give the exit code.

    Raises:
        ConfigError: the YAML file or an option is wrong; with every error.
    """
    converted = convert(options)
    for note in converted.notes:
        sys.stderr.write(f"{note}\n")
    sys.stdout.write(render(converted.manifest))
    return 0


def convert(options: argparse.Namespace) -> Converted:
    """Make the FinetuneJob.

    Raises:
        ConfigError: the YAML file or an option is wrong; with every error.
    """
    return convert_config(read_mapping(options.config_file), options)


def options_of(file: str) -> argparse.Namespace:
    """The options of ``finetune convert`` for a file, the others as they are by default."""
    parser = argparse.ArgumentParser(add_help=False)
    add_conversion(parser)
    return parser.parse_args([], argparse.Namespace(config_file=file))


def convert_config(given: Mapping[str, Any], options: argparse.Namespace) -> Converted:
    """The same, from what the YAML file holds.

    Raises:
        ConfigError: it or an option is wrong; with every error.
    """
    file = options.config_file
    raw, notes = _without_token(_with_sections_spelled(given), options)
    refused = list(other_objectives(raw))
    try:
        config = TrainerConfig.model_validate(raw)
    except ValidationError as error:
        refused = [*_sentences(error), *refused]
    if refused:
        raise ConfigError([f"{file}: {line}" for line in refused])
    schema = crd_schema()["properties"]["spec"]["properties"]["config"]
    written = _as_written(schema, raw, config.model_dump(mode="json", by_alias=True))
    notes += config_notes(config)
    notes += [f"{format_path(finding.path)}: left out: {finding.message}" for finding in unknown_fields(schema, raw)]
    notes += _map_data_files(written["Dataset"], options)
    notes += _map_model(written["General"], options)
    manifest = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": job_name(file) if options.name is None else options.name},
        "spec": {"config": written} | _rest_of_spec(options),
    }
    if findings := check_object(manifest):
        raise ConfigError([f"{file}: {finding}" for finding in findings])
    return Converted(manifest, tuple(f"{file}: {note}" for note in notes))


def job_name(file: str) -> str:
    """A DNS-1035 label of at most 40 characters that resembles the file's name."""
    label = re.sub(r"[^a-z0-9]+", "-", Path(file).stem.lower()).strip("-")
    if not label[:1].isalpha():
        label = f"finetune-{label}"
    return label[:MAX_JOB_NAME].rstrip("-")


def _with_sections_spelled(raw: Mapping[str, Any]) -> Object:
    """Sections may be written in lower case; the CRD has one spelling only."""
    sections = {section.lower(): section for section in ("General", "Dataset", "Training") if section not in raw}
    return {sections.get(key, key): value for key, value in raw.items()}


def _without_token(raw: Object, options: argparse.Namespace) -> tuple[Object, list[str]]:
    """Leave out a token that stands in the file; nothing here prints it."""
    general: Any = raw.get("General")
    hub = general.get("config") if isinstance(general, dict) else None
    if not isinstance(hub, dict):
        return raw, []
    given = [key for key in ("use_auth_token", "token") if hub.get(key) not in (None, "", False)]
    if not given:
        return raw, []
    hub = {key: value for key, value in hub.items() if key not in given}
    if options.token_secret:
        instead = f"Secret {options.token_secret} takes its place"
    else:
        instead = (
            "a token does not belong into a job. Make a Secret with "
            '`kubectl create secret generic NAME --from-literal=token="$HF_TOKEN"`, and name it with --token-secret NAME[/KEY]'
        )
    return raw | {"General": general | {"config": hub}}, [f"General.config.{key}: left out: {instead}" for key in given]


def _sentences(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(map(str, item["loc"]))
        yield f"{key}: {item['msg'].removeprefix('Value error, ')}"


def _as_written(schema: Object, raw: Object, read: Object) -> Object:
    """The known keys of a part as the user wrote them; a value that only the trainer takes, as `yes` for true, as it reads it.

    Args:
        schema: the part's schema in the CRD.
        raw: the part as the YAML has it.
        read: the part as the trainer reads it, with every key.
    """
    written: Object = {}
    for key, value in raw.items():
        part = schema["properties"].get(key)
        if part is None:
            continue
        if "properties" in part and isinstance(value, dict):
            written[key] = _as_written(part, value, read[key])
        else:
            simple = value is None or isinstance(value, str | int | float)
            written[key] = value if simple and not any(violations(part, value)) else read[key]
    return written


def _map_data_files(dataset: Object, options: argparse.Namespace) -> list[str]:
    """Map paths of this machine to files at the root of the data set, in place."""
    before = {key: dataset[key] for key in DATA_FILES if dataset.get(key)}
    notes = []
    for key, path in before.items():
        if not path.startswith(("/", "~")) and ".." not in path.split("/"):
            continue
        dataset[key] = PurePosixPath(path).name
        if options.dataset_config_map:
            place = f"must be a key of ConfigMap {options.dataset_config_map}"
        elif options.dataset_claim:
            place = f"must lie at the root of the data set's claim, {options.dataset_claim}"
        else:
            place = "must lie at the root of the data set's claim: name it with --dataset-claim NAME[/SUBPATH]"
        notes.append(f"Dataset.{key}: {path} becomes {dataset[key]}, which {place}")
    if len(set(before.values())) > len({dataset[key] for key in before}):
        message = f"would both be {dataset['train_file']} in the data set: rename one of {', '.join(before.values())}"
        raise ConfigError([f"{options.config_file}: Dataset.train_file and Dataset.validation_file {message}"])
    return notes


def _map_model(general: Object, options: argparse.Namespace) -> list[str]:
    """Map a folder of this machine to the name that the result carries, in place."""
    notes = []
    model, tokenizer = general["base_model"], general.get("tokenizer_name")
    if tokenizer and tokenizer == model and _is_folder(model):
        general["tokenizer_name"] = None
        notes.append("General.tokenizer_name: becomes null, which means the base model's own")
    elif tokenizer and _is_folder(tokenizer):
        notes.append(f"General.tokenizer_name: {tokenizer} must be a folder in the image")
    if _is_folder(model):
        general["base_model"] = _last_part(model)
        claim = (
            f"claim {options.model_claim}" if options.model_claim else "the claim that --model-claim NAME[/SUBPATH] has to name"
        )
        notes.append(f"General.base_model: {model} becomes {general['base_model']}, a name only; the model is read from {claim}")
    return notes


def _is_folder(name: str) -> bool:
    """Whether a name means a folder to the trainer, and not a model on the hub."""
    return name.startswith(("/", "~", "./", "../")) or name in {".", ".."} or Path(name).is_dir()


def _last_part(folder: str) -> str:
    name = PurePosixPath(folder).name
    return at_home(folder).resolve().name if name in {"", "..", "~"} else name


def _rest_of_spec(options: argparse.Namespace) -> Object:
    model = {
        "persistentVolumeClaim": _reference(options.model_claim, "claimName", "subPath"),
        "tokenSecretRef": _reference(options.token_secret, "name", "key"),
    }
    dataset = {
        "persistentVolumeClaim": _reference(options.dataset_claim, "claimName", "subPath"),
        "configMap": _reference(options.dataset_config_map, "name"),
    }
    output = {
        "persistentVolumeClaim": _reference(options.output_claim, "claimName"),
        "size": options.output_size or (None if options.output_claim else DEFAULT_OUTPUT_SIZE),
        "accessModes": [options.output_access_mode] if options.output_access_mode else None,
    }
    parts = {
        "image": options.image,
        "accelerator": options.accelerator,
        "dataset": _given(dataset),
        "model": _given(model),
        "output": _given(output),
        "workers": _given({"memory": options.memory}),
    }
    return _given(parts)


def _given(parts: Object) -> Object:
    return {key: value for key, value in parts.items() if value}


def _reference(text: str | None, key: str, rest_key: str | None = None) -> Object:
    """``NAME[/REST]`` as an object; without `rest_key` all of it is the name."""
    if text is None:
        return {}
    name, _, rest = text.partition("/") if rest_key else (text, "", "")
    return {key: name} | ({rest_key: rest} if rest_key and rest else {})
