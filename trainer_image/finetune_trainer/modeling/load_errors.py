"""Explain why a model or a tokenizer cannot be loaded, and what to do: transformers has one message for many causes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import constants, get_token, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError, safe_open

from finetune_trainer.advice import lacking_memory
from finetune_trainer.errors import ModelAccessDenied, ModelInvalid, ModelNotFound, TrainerError
from finetune_trainer.explain import explain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.config.run import Run

ERRORS = (OSError, ValueError, ImportError, KeyError, RuntimeError, SafetensorError)
"""Exceptions that transformers raises when it cannot load something."""

SHOWN_WEIGHTS = 3
"""How many missing weights a message names."""

_TOKEN = "spec.model.tokenSecretRef of a FinetuneJob, or the environment variable HF_TOKEN"  # noqa: S105 - no token


def refuse(run: Run, what: str, source: str, error: Exception) -> Exception:
    """The error to raise when something cannot be loaded.

    Args:
        run: what is loaded.
        what: model or tokenizer.
        source: a folder, or a name on the hub.
        error: what transformers raised.
    """
    if lacking_memory(error) is not None:
        return explain(error, run) or error
    name = run.config.general.base_model
    if what == "tokenizer" and run.config.general.tokenizer_name:
        name = run.config.general.tokenizer_name
    where = f"folder {source}" if Path(source).is_absolute() else "the Hugging Face hub or its local cache"
    kind, why = _cause(source, run.model_revision, error)
    return kind(f"{name}: cannot load the {what} from {where}: {why}")


def check_complete(run: Run, missing: Iterable[str]) -> None:
    """Refuse a model with missing weights: transformers would initialise them with random numbers.

    Raises:
        ModelInvalid: weights are missing.
    """
    names = sorted(missing)
    if names:
        more = f" and {len(names) - SHOWN_WEIGHTS} more" if len(names) > SHOWN_WEIGHTS else ""
        lacks = ", ".join(names[:SHOWN_WEIGHTS]) + more
        raise ModelInvalid(f"{run.config.general.base_model}: its files lack {lacks}, which its config.json asks for")


def first_sentence(error: Exception) -> str:
    """The first line of an error's message."""
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _cause(source: str, revision: str | None, error: Exception) -> tuple[type[TrainerError], str]:
    refusal = next((cause for cause in _chain(error) if isinstance(cause, HfHubHTTPError)), None)
    if refusal is not None:
        return _refusal(source, revision, refusal)
    broken = _broken_file(source, revision)
    if broken is not None:
        return ModelInvalid, f"{broken}; it is cut off or no such file: copy or download it again"
    if "ignore_mismatched_sizes" in str(error):
        return ModelInvalid, "the weights do not have the shapes of its config.json"
    return ModelNotFound, first_sentence(error)


def _refusal(source: str, revision: str | None, error: HfHubHTTPError) -> tuple[type[TrainerError], str]:
    """The meaning of the hub's answer. Without a token the hub answers alike for private and for missing models."""
    code, page = error.response.status_code, f"{constants.ENDPOINT}/{source}"
    if isinstance(error, GatedRepoError):
        given = "the token that was given is of an account that has not" if get_token() else "no token was given"
        return ModelAccessDenied, (f"it is gated, and {given}: accept the licence at {page}, "
                                   f"and give a token of that account ({_TOKEN})")  # fmt: skip
    if code in (401, 403) and get_token():
        return ModelAccessDenied, f"the hub refuses the token ({code}): give a valid one that may read {page} ({_TOKEN})"
    if isinstance(error, RepositoryNotFoundError) or code in (401, 403):
        return ModelNotFound, f"there is no {page}; or it is private, and needs a token that may read it ({_TOKEN})"
    if isinstance(error, RevisionNotFoundError):
        return ModelNotFound, f"{page} has no revision {revision}"
    return ModelNotFound, f"the hub answers {first_sentence(error)}"


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    """The error and its causes."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _broken_file(source: str, revision: str | None) -> str | None:
    """The first unreadable file of weights or settings, with the reason; None: all files can be read."""
    folder = Path(source) if Path(source).is_absolute() else _cached(source, revision)
    for path in sorted(folder.glob("*") if folder else ()):
        try:
            _read(path)
        except (OSError, ValueError, SafetensorError) as error:
            return f"{path} cannot be read ({first_sentence(error)})"
    return None


def _cached(name: str, revision: str | None) -> Path | None:
    """The folder of a hub model in the local cache; None: it is not cached."""
    try:
        config = try_to_load_from_cache(name, "config.json", revision=revision)
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _read(path: Path) -> None:
    if path.suffix == ".json":
        json.loads(path.read_bytes())
    elif path.suffix == ".safetensors":
        with safe_open(path, "pt"):
            pass
