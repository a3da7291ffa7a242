"""Makes the manifest that is submitted: of a manifest, a finetuning YAML of llm-on-ray, or a model; with values set."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_client.errors import ClientError
from finetune_client.home import at_home
from finetune_client.transfer.names import target_name
from finetune_operator.constants import API_VERSION, KIND
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from finetune_operator.api.spec import FinetuneJobSpec
    from finetune_operator.api.v1alpha1 import FinetuneJob

Object = dict[str, Any]

SECTIONS = ("General", "Dataset", "Training")
TOP = ("spec", "metadata")


def build(
    job: Mapping[str, Any] | FinetuneJob | FinetuneJobSpec | str | Path, *, name: str | None, settings: Mapping[str, Any]
) -> Object:
    """A valid manifest; see `FinetuneClient.submit`.

    Raises:
        ConfigError: it is not valid; with every error.
    """
    return finish(*_raw(job), name=name, settings=settings)


def finish(raw: Object, where: str, *, name: str | None = None, settings: Mapping[str, Any] | None = None) -> Object:
    """Name a manifest, set values, and check it.

    Raises:
        ConfigError: it is not valid; with every error, each with the place where the manifest is from.
    """
    from finetune_client.validate import check_object

    manifest = copy.deepcopy(raw)
    metadata = manifest.setdefault("metadata", {})
    if name and isinstance(metadata, dict):
        metadata.pop("generateName", None)
        metadata["name"] = name
    places = {}
    for key, value in (settings or {}).items():
        places[_set(manifest, key, value)] = key
    errors = []
    for finding in check_object(manifest):
        of = next((key for path, key in places.items() if finding.path[: len(path)] == path), None)
        errors.append(f"{where}: {finding}" + (f" (set by {of})" if of else ""))
    if errors:
        raise ConfigError(errors)
    return manifest


def with_rows(settings: Mapping[str, Any], file: str | Path) -> Object:
    """Settings of a job that trains on a file or folder that is copied to the claim of its data.

    Raises:
        ClientError: there is no such file here.
    """
    path = at_home(file)
    if not path.exists():
        raise ClientError(f"there is no file {file} here", "--upload takes a file or a folder of this machine")
    return {"Dataset.train_file": target_name(file), **settings}


def place_of_rows(manifest: Object) -> tuple[str, str]:
    """Claim and folder of the data of a valid manifest.

    Raises:
        ClientError: it names no claim for them.
    """
    dataset = manifest["spec"].get("dataset") or {}
    claim = dataset.get("persistentVolumeClaim")
    if not claim:
        instead = "a ConfigMap" if dataset.get("configMap") else "no claim"
        hint = "name one: --set dataset.persistentVolumeClaim.claimName=NAME, or --dataset-claim NAME for a finetuning YAML"
        raise ClientError(f"--upload copies rows to a claim, and the job names {instead} for its data", hint)
    return str(claim["claimName"]), str(claim.get("subPath") or "")


def for_namespace(manifest: Object, namespace: str) -> Object:
    """A manifest that goes into a namespace.

    Raises:
        ConfigError: it names another one.
    """
    named = manifest["metadata"].get("namespace")
    if named not in (None, namespace):
        raise ConfigError([f"metadata.namespace: the manifest is for namespace {named}, not {namespace}: say -n {named}"])
    return manifest | {"metadata": manifest["metadata"] | {"namespace": namespace}}


def is_bare(raw: object) -> bool:
    """Whether an object is a finetuning YAML of llm-on-ray and no manifest."""
    if not isinstance(raw, Mapping) or {"apiVersion", "kind"} & set(raw):
        return False
    return any(str(key).capitalize() in SECTIONS for key in raw)


def parse_settings(texts: list[str]) -> Object:
    """Values by dotted path, of texts like ``Training.epochs=1``; values are read as in a manifest.

    Raises:
        ConfigError: one is no such text.
    """
    from finetune_client.manifest import parse_value

    settings = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not (separator and all(key.split("."))):
            raise ConfigError([f"--set {text}: is not PATH=VALUE, as Training.epochs=1 or output.size=20Gi"])
        settings[key] = parse_value(value, f"--set {text}")
    return settings


def _raw(job: Mapping[str, Any] | FinetuneJob | FinetuneJobSpec | str | Path) -> tuple[Object, str]:
    if isinstance(job, str | Path):
        return one_of_file(str(job)), str(job)
    if isinstance(job, Mapping):
        return (_of_config(job, "job", None)[0] if is_bare(job) else dict(job)), "job"
    from finetune_operator.api.base import dump

    parts = dump(job)
    spec = parts.get("spec", parts)
    metadata = {
        key: value for key, value in parts.get("metadata", {}).items() if key in {"name", "namespace", "labels"} and value
    }
    return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}, "job"


def one_of_file(file: str) -> Object:
    """The only FinetuneJob of a file.

    Raises:
        ConfigError: there is none, or there are several, or it cannot be read.
    """
    found = list(jobs_of_file(file))
    if len(found) != 1:
        raise ConfigError([f"{file}: must hold one FinetuneJob, not {len(found)}"])
    return found[0][0]


def jobs_of_file(file: str, options: argparse.Namespace | None = None) -> Iterator[tuple[Object, tuple[str, ...]]]:
    """The FinetuneJobs of a file, with notes; a finetuning YAML of llm-on-ray becomes one that is named after the file.

    Args:
        file: its name, or ``-``.
        options: those of ``finetune convert``, for such a YAML.

    Raises:
        ConfigError: it cannot be read, or is wrong; with every error.
    """
    from finetune_client.manifest import is_stream, read_documents
    from finetune_client.validate import is_job, objects

    documents = read_documents(file)
    if len(documents) == 1 and is_bare(documents[0].value) and not is_stream(file):
        yield _of_config(None, file, options)  # by the trainer's own reader: kubectl's takes `no` for false
        return
    if wrong := [line for document in documents for line in document.errors()]:
        raise ConfigError(wrong)
    for document in documents:
        for path, raw in objects(document.value):
            if is_bare(raw):
                raise ConfigError([f"{document.file}: a finetuning YAML of llm-on-ray is read from a file, not from a stream"])
            if not isinstance(raw, dict):
                raise ConfigError([f"{document.file}:{document.line(path)}: must be a mapping"])
            if is_job(raw):
                yield raw, ()


def _of_config(config: Mapping[str, Any] | None, file: str, options: argparse.Namespace | None) -> tuple[Object, tuple[str, ...]]:
    from finetune_client import convert

    chosen = argparse.Namespace(**vars(options or convert.options_of(file)) | {"config_file": file})
    made = convert.convert(chosen) if config is None else convert.convert_config(config, chosen)
    return made.manifest, made.notes


def _set(manifest: Object, key: str, value: Any) -> tuple[str, ...]:
    """Set a value by its dotted path, which may begin within the spec or its config; give the whole path."""
    first, *rest = key.split(".")
    section = next((name for name in SECTIONS if name.lower() == first.lower()), None)
    if section:
        path = ("spec", "config", section, *rest)
    elif first == "config":
        path = ("spec", "config", *rest)
    else:
        path = (first, *rest) if first in TOP else ("spec", first, *rest)
    node = manifest
    for name in path[:-1]:
        inner = node.get(name)
        if not isinstance(inner, dict):
            inner = node[name] = {}
        node = inner
    node[path[-1]] = value
    return path
