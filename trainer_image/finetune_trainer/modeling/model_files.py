"""The files of a model, in a folder or in the local cache of the hub: which ones are there, and which are broken."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open

from finetune_trainer.files import LFS_POINTER

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "*.model", "vocab.json", "vocab.txt", "*.tiktoken", "tekken.json")
"""Any of these holds the vocabulary of a tokenizer; `tokenizer_config.json` alone does not."""

_BEGIN = 512
"""Bytes that tell what a file is."""


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder has a vocabulary, or Python code of its own for one."""
    code = any(folder.glob("*.py")) and (folder / "tokenizer_config.json").is_file()
    return code or any(next(folder.glob(pattern), None) for pattern in TOKENIZER_FILES)


def adapted_model(folder: Path) -> str | None:
    """The base model of a LoRA adapter; None: the folder holds none."""
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_bytes())
        return str(config.get("base_model_name_or_path") or "which its adapter_config.json does not name")
    except (OSError, ValueError, AttributeError):
        return "which its adapter_config.json should name, but it cannot be read"


def broken_file(source: str, revision: str | None) -> str | None:
    """The first broken file of weights, settings or vocabulary, and what to do; None: all files can be read."""
    folder = Path(source) if Path(source).is_absolute() else _cached(source, revision)
    files = sorted(path for path in (folder.glob("*") if folder else ()) if path.is_file())
    for path in files:
        why = _problem(path)
        if why:
            return f"{path} {why}"
    for path in files:
        lost = _lost_shards(path)
        if lost:
            return f"{path} names {lost}, which is not there: copy or download it too"
    return None


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache; None: it is not cached."""
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _problem(path: Path) -> str | None:
    """What is wrong with a file, and what to do."""
    try:
        with path.open("rb") as file:
            begin = file.read(_BEGIN)
        if begin.startswith(LFS_POINTER):
            return ("cannot be read (it is a pointer of Git LFS, not the file itself): "
                    "run `git lfs pull` where it was cloned, or download it again")  # fmt: skip
        _read(path, begin)
    except (OSError, ValueError, SafetensorError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile) as error:
        reason = str(error).strip().splitlines()
        return (
            f"cannot be read ({reason[0] if reason else 'it is empty'}); it is cut off or no such file: copy or download it again"
        )
    return None


def _read(path: Path, begin: bytes) -> None:
    """Read a file as far as it takes to see that it is complete."""
    if path.suffix == ".json":
        value = json.loads(path.read_bytes())
        if not isinstance(value, dict) and path.name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            raise ValueError("it holds no JSON object")
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt"):
            pass
    elif path.suffix in (".bin", ".pt", ".pth"):
        _read_pickle(path, begin)
    elif path.suffix == ".model" and not begin:
        raise ValueError("it is empty")


def _read_pickle(path: Path, begin: bytes) -> None:
    if begin.startswith(b"PK"):
        with zipfile.ZipFile(path):  # its directory is at its end
            return
    if not begin.startswith(b"\x80"):
        raise ValueError("it holds no weights of torch")


def _lost_shards(path: Path) -> str | None:
    """The first shard that an index names and that is missing."""
    if not path.name.endswith(".index.json"):
        return None
    shards = json.loads(path.read_bytes()).get("weight_map", {}).values()
    return next((str(shard) for shard in sorted(set(shards)) if not (path.parent / str(shard)).is_file()), None)
