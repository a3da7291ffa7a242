"""Read the finetuning YAML, and report all of its errors at once.

Neither torch nor Ray is imported here: the operator's command line checks files with the same function.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from finetune_trainer.config.notes import config_notes
from finetune_trainer.config.objective import other_objectives
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.config.unknown_keys import unknown_keys
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


DIGEST_VARIABLE = "FINETUNE_CONFIG_SHA256"
"""With what the operator tells the driver the digest of the file that it wrote."""

_REPLACED = (
    "this is not the configuration that the operator wrote for the job; somebody has replaced its ConfigMap. "
    "Delete that ConfigMap, see who may write ConfigMaps in this namespace, and make a new FinetuneJob"
)


@dataclass(frozen=True)
class LoadedConfig:
    """A valid configuration, and warnings about the file."""

    config: TrainerConfig
    warnings: tuple[str, ...]
    """Obsolete keys and, unless they were errors, unknown keys; one line each, with the file's name."""


def load_config(path: str | os.PathLike[str], *, strict: bool = False, digest: str | None = None) -> LoadedConfig:
    """Read and check a YAML file.

    Args:
        path: the file; messages name it as it is written here.
        strict: unknown keys are errors.
        digest: SHA-256 that the file has to have, in hexadecimal digits.

    Raises:
        ConfigError: it has all errors, each on one line that starts with the file.
    """
    name = os.fspath(path)
    raw = read_mapping(name, digest)
    unknown = [f"{name}: {line}" for line in unknown_keys(raw)]
    errors = [f"{name}: {line}" for line in other_objectives(raw)] + (unknown if strict else [])
    try:
        config = TrainerConfig.model_validate(raw)
    except ValidationError as error:
        errors = [f"{name}: {line}" for line in _sentences(error)] + errors
    if errors:
        raise ConfigError(errors)
    notes = [f"{name}: {line}" for line in config_notes(config)]
    return LoadedConfig(config, tuple(notes + unknown))


def read_mapping(name: str, digest: str | None = None) -> Mapping[str, Any]:
    """Read a file of YAML 1.2 that holds a mapping.

    Raises:
        ConfigError: it cannot be read, it is not the file of this digest, or it is not YAML; the message has the line.
    """
    return _parse(name, _read(name, digest))


def _read(name: str, digest: str | None) -> str:
    try:
        data = Path(name).read_bytes()
    except OSError as error:
        raise ConfigError([f"{name}: cannot read the configuration: {error.strerror}"]) from None
    if digest and hashlib.sha256(data).hexdigest() != digest:
        raise ConfigError([f"{name}: {_REPLACED}"])
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([f"{name}:{line}: the file is not UTF-8 text"]) from None


def _parse(name: str, text: str) -> Mapping[str, Any]:
    # The pure parser speaks YAML 1.2, as llm-on-ray does: `no` is a word and `1e-5` is a number.
    try:
        raw = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{name}:{mark.line + 1}" if mark else name
        problem = str(error.problem or error.context).splitlines()[0]
        raise ConfigError([f"{place}: {problem}"]) from None
    except YAMLError as error:
        raise ConfigError([f"{name}: {' '.join(str(error).split())}"]) from None
    except RecursionError:
        raise ConfigError([f"{name}: lists or mappings are nested too deeply"]) from None
    except (ValueError, OverflowError) as error:  # a number of thousands of digits, a date that no calendar has
        raise ConfigError([f"{name}: a value cannot be read: {' '.join(str(error).split())[:200]}"]) from None
    if not isinstance(raw, dict):
        raise ConfigError([f"{name}: the file must hold a mapping, as `key: value`"])
    return raw


def _sentences(error: ValidationError) -> Iterator[str]:
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        yield f"{key}: {message}" if key else message
