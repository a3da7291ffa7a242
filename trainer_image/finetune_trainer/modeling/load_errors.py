"""Explain why a model or a tokenizer cannot be loaded, and what to do: transformers has one message for many causes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub import constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from finetune_trainer.advice import lacking_memory
from finetune_trainer.errors import ModelAccessDenied, ModelInvalid, ModelNotFound, TrainerError
from finetune_trainer.explain import explain
from finetune_trainer.modeling import model_files

if TYPE_CHECKING:
    from collections.abc import Iterable

    from finetune_trainer.config.run import Run

What = Literal["model", "tokenizer"]

SHOWN_WEIGHTS = 3
"""How many missing weights a message names."""

ALWAYS_CAUSAL = {"gpt_neox", "gpt_neox_japanese"}
"""Types of models whose configuration has the switch is_decoder, which is without effect in them."""

_KNOWN = {
    "ignore_mismatched_sizes": "the weights do not have the shapes of its config.json",
    "Unrecognized configuration class": "it is not a causal language model, which predicts the next token",
    "Unrecognized model in": "its config.json names no model_type: it is not the configuration of a model",
    "trust_remote_code=True": "it comes with Python code of its own: if you trust it, set General.config.trust_remote_code: true",
}
"""Words of transformers → what they mean for the user."""

_TOKEN = "spec.model.tokenSecretRef of a FinetuneJob, or the environment variable HF_TOKEN"  # noqa: S105 - no token


def refuse(run: Run, what: What, source: str, error: Exception) -> Exception:
    """The error to raise when something cannot be loaded.

    Args:
        run: what is loaded.
        what: model or tokenizer.
        source: a folder, or a name on the hub.
        error: what transformers raised.
    """
    if lacking_memory(error) is not None:
        return explain(error, run) or error
    kind, why = _cause(source, run.model_revision, error)
    return kind(f"{_name(run, what)}: cannot load the {what} from {_place(source)}: {why}")


def _name(run: Run, what: What) -> str:
    """The name in the configuration."""
    return (run.config.general.tokenizer_name if what == "tokenizer" else None) or run.config.general.base_model


def _place(source: str) -> str:
    return f"folder {source}" if Path(source).is_absolute() else "the Hugging Face hub or its local cache"


def check_source(run: Run, what: What, source: str) -> None:
    """Refuse what transformers would load as something else, or report in words that do not help.

    Raises:
        ModelNotFound: there is no such folder, or it has no files of this kind.
        ModelInvalid: it is not a model, but a LoRA adapter.
    """
    name = _name(run, what)
    if not Path(source).is_absolute():
        path = Path(source).expanduser()
        if path.is_absolute() or source.startswith("."):
            raise ModelNotFound(f"{name}: there is no folder {run.working_dir / path}")
        return
    folder = Path(source)
    if not folder.is_dir():
        there = "it is a file, not the folder of a model" if folder.exists() else f"there is no folder {folder}"
        raise ModelNotFound(f"{name}: {there}")
    base = model_files.adapted_model(folder) if what == "model" else None
    if base is not None:
        raise ModelInvalid(f"{name}: the folder {folder} is a LoRA adapter, not a model: name its base model, {base}, or the "
                           "folder of the merged model (General.merge_adapter); to go on training the adapter, name its base "
                           "model, and with --resume_from the output folder of its run")  # fmt: skip
    if what == "model" and not (folder / "config.json").is_file():
        raise ModelNotFound(f"{name}: there is no config.json in {folder}: it is not the folder of a model of transformers")
    if what == "tokenizer" and not model_files.has_tokenizer(folder):
        raise ModelNotFound(f"{name}: there are no tokenizer files in {folder}, as tokenizer.json or tokenizer.model: copy them "
                            "there, or name a tokenizer in General.tokenizer_name")  # fmt: skip


def check_causal(run: Run, config: Any) -> None:
    """Refuse a model that does not predict the next token from the earlier ones: it would train, and learn nothing of use.

    Raises:
        ModelInvalid: it is an encoder, or an encoder with a decoder.
    """
    bidirectional = getattr(config, "is_decoder", None) is False and config.model_type not in ALWAYS_CAUSAL
    if bidirectional or getattr(config, "is_encoder_decoder", False):
        kind = "an encoder and a decoder" if getattr(config, "is_encoder_decoder", False) else "an encoder"
        raise ModelInvalid(f"{run.config.general.base_model}: it is {kind} (model_type {config.model_type}), not a causal "
                           "language model, which predicts the next token: use one as Llama, Mistral or GPT-2")  # fmt: skip


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
    """The first line of an error's message, and the one after it if it ends with a colon."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith(":"):
        return " ".join(lines[:2])
    return lines[0] if lines else type(error).__name__


def _cause(source: str, revision: str | None, error: Exception) -> tuple[type[TrainerError], str]:
    refusal = next((cause for cause in _chain(error) if isinstance(cause, HfHubHTTPError)), None)
    if refusal is not None:
        return _refusal(source, revision, refusal)
    broken = model_files.broken_file(source, revision)
    if broken is not None:
        return ModelInvalid, broken
    text = str(error)
    for words, why in _KNOWN.items():
        if words in text:
            return ModelInvalid, why
    # What is missing is an OSError of transformers; anything else is about what is there.
    if isinstance(error, OSError):
        return ModelNotFound, first_sentence(error)
    if isinstance(error, ValueError | ImportError | RuntimeError):
        return ModelInvalid, first_sentence(error)
    return ModelInvalid, f"one of its files is broken, or of another release ({type(error).__name__}: {first_sentence(error)})"


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
