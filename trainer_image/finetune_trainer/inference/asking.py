"""The models of a finished run, ready to be asked, with the prompt that was trained."""

from __future__ import annotations

import json
import warnings
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from finetune_trainer.config.dataset import Dataset
from finetune_trainer.config.run import LOGS, MERGED, Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.data.encode import encode
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.prompts import parts_of
from finetune_trainer.errors import ConfigError, DeviceNotFound, ModelInvalid
from finetune_trainer.modeling import families
from finetune_trainer.modeling import load as loading
from finetune_trainer.modeling.loss import SupervisedLoss
from finetune_trainer.output.manifest import MANIFEST
from finetune_trainer.output.summary_file import Summary, read_summary
from finetune_trainer.runtime import cpu, devices
from finetune_trainer.tracking import console

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

ADAPTER = "adapter_config.json"
CONFIG = "config.json"
OF_CONTEXT = "message['context']"
"""What a chat template has that is llm-on-ray's prompt: its messages may have a context."""


@dataclass(frozen=True)
class Asked:
    """Models, by the names base and trained, which share a tokenizer and the prompt."""

    models: dict[str, Any]
    tokenizer: Any
    dataset: Dataset
    """How prompts are made."""
    takes_messages: bool
    """Whether the model was taught prompts; otherwise it continues texts."""
    stops: tuple[int, ...]
    device: torch.device
    dtype: torch.dtype

    def prompt(self, words: str, context: str = "", turns: Sequence[tuple[str, str]] = ()) -> list[int]:
        """The ids of a prompt.

        Args:
            words: the instruction, or the begin of a text.
            context: the context of the instruction.
            turns: earlier questions with their answers.

        Raises:
            ConfigError: there are no words.
        """
        if not words:
            raise ConfigError(["the prompt is empty: give the model something to answer"])
        if not self.takes_messages:
            (parts,) = parts_of([Row("", "", "", 1, words)], self.tokenizer, self.dataset)
            return [*parts.head, *parts.response]
        if turns:
            said = [
                {"role": role, "content": text} for turn in turns for role, text in zip(("user", "assistant"), turn, strict=True)
            ]
            made = self.tokenizer.apply_chat_template(
                [*said, {"role": "user", "content": words}], add_generation_prompt=True, return_dict=True
            )
            return list(made["input_ids"])
        encoded = encode([Row(words, context, "", 1)], self.tokenizer, self.dataset, "prompt")
        if encoded.refused:
            raise ConfigError([f"the prompt: {encoded.refused[0][1]}"])
        ids: list[int] = encoded.examples.row(0)[: encoded.examples.first[0]].tolist()
        if encoded.cut_prompts:
            console.complain(f"the prompt was cut to {len(ids)} tokens, as in the training (Dataset.max_source_length)")
        return ids

    def answer(self, name: str, prompt: list[int], tokens: int, tell: Callable[[str], None] = lambda _: None) -> str:
        """The answer of a model; `tell` gets it piece by piece.

        Raises:
            ConfigError: the prompt is as long as what the model can read.
        """
        model, adapter_off = self.models[name], nullcontext
        if name == "base" and hasattr(model, "disable_adapter"):
            adapter_off = model.disable_adapter
        longest = families.longest_input(model) or len(prompt) + tokens
        if len(prompt) >= longest:
            raise ConfigError([f"the prompt has {len(prompt)} tokens, and the model reads {longest} at most: begin anew"])
        stream = _Stream(self.tokenizer, self.stops, tell)
        ids = torch.tensor([prompt], device=self.device)
        with torch.inference_mode(), adapter_off(), self._autocast():
            SupervisedLoss(model).generate(
                input_ids=ids,
                mask=torch.ones_like(ids),
                stops=torch.tensor(self.stops, device=self.device),
                limit=min(tokens, longest - len(prompt)),
                agree=stream.take,
            )
        return stream.end()

    def _autocast(self) -> AbstractContextManager[Any]:
        adapted = any(hasattr(model, "peft_config") for model in self.models.values())
        if self.dtype == torch.float32 or not adapted:  # a full model was saved in the type
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)


class _Stream:
    """Tells text as tokens come; a character may have several tokens."""

    def __init__(self, tokenizer: Any, stops: tuple[int, ...], tell: Callable[[str], None]) -> None:
        self._tokenizer, self._stops, self._tell = tokenizer, stops, tell
        self._ids: list[int] = []
        self._told = ""

    def take(self, tokens: torch.Tensor) -> torch.Tensor:
        """The next token, of one row."""
        token = int(tokens[0])
        if token not in self._stops:
            self._ids.append(token)
            text = self._text()
            if not text.endswith("\ufffd") and text.startswith(self._told):
                self._tell(text[len(self._told) :])
                self._told = text
        return tokens

    def end(self) -> str:
        """Tell the rest; give the whole."""
        text = self._text()
        self._tell(text[len(self._told) :] if text.startswith(self._told) else "")
        return text

    def _text(self) -> str:
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text


def load(
    folder: Path, model_dir: Path | None = None, device: str | None = None, *, base: bool = False, trusts_code: bool = False
) -> Asked:
    """Load the model of a finished run, and if asked for the base model.

    Args:
        folder: the output folder, or the folder of the merged model in it.
        model_dir: folder of the base model; None: its name on the hub.
        device: cpu or gpu; None: a GPU if there is one.
        base: whether the base model is asked, too.
        trusts_code: whether Python code that comes with the base model may run.

    Raises:
        ModelInvalid: there is no complete result in the folder.
        TrainerError: the base model cannot be loaded; with what to do.
    """
    from transformers import AutoTokenizer

    folder = folder.expanduser().absolute()
    if not any((folder / name).is_file() for name in (ADAPTER, CONFIG)):
        raise ModelInvalid(f"{folder}: there is no model in this folder; name the output folder of a finished run")
    found = read_summary((folder.parent if folder.name == MERGED else folder) / LOGS)
    place = _device(device)
    dtype: torch.dtype = getattr(torch, _compute_type(place, found))
    console.stage(f"loading the model from {folder}")
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    takes_messages = bool(tokenizer.chat_template) if found is None or found.messages is None else found.messages
    config = _config(folder, found, tokenizer, trusts=trusts_code)
    revision = found.model_revision if found else None
    base_dir = model_dir.expanduser().absolute() if model_dir else None
    run = Run(config=config, output_dir=folder, model_dir=base_dir, model_revision=revision, working_dir=Path.cwd())
    models = {name: model.to(place).eval() for name, model in _models(folder, run, dtype, base=base).items()}
    stops = _stops(tokenizer, config.dataset, found, takes_messages=takes_messages)
    return Asked(models, tokenizer, config.dataset, takes_messages, stops, place, dtype)


def _models(folder: Path, run: Run, dtype: torch.dtype, *, base: bool) -> dict[str, Any]:
    """The models by their names, the base model first."""
    if (folder / ADAPTER).is_file():
        import peft

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT uses names that transformers has changed
            adapted = peft.PeftModel.from_pretrained(loading.load_base(run, dtype), str(folder))
        return dict.fromkeys(("base", "trained") if base else ("trained",), adapted)
    full = loading.load_base(replace(run, model_dir=folder, model_revision=None), dtype)
    return ({"base": loading.load_base(run, dtype)} if base else {}) | {"trained": full}


def _config(folder: Path, found: Summary | None, tokenizer: Any, *, trusts: bool) -> TrainerConfig:
    """The configuration of the run; of one that has left none, what can be told from its files."""
    config = None
    with suppress(ValueError):  # it may be of another version
        config = None if found is None else TrainerConfig.model_validate(found.config)
    if config is None:
        template = tokenizer.chat_template or ""
        prompt = "model" if template and OF_CONTEXT not in template else "llm_on_ray"
        values: Any = {"General": {"base_model": _base_of(folder)}, "Dataset": {"train_file": "?", "chat_template": prompt}}
        config = TrainerConfig.model_validate(values)
    hub = config.general.config.model_copy(update={"trust_remote_code": trusts})
    return config.model_copy(update={"general": config.general.model_copy(update={"config": hub})})


def _base_of(folder: Path) -> str:
    """The base model that a folder names; itself if it names none."""
    for name, key in ((MANIFEST, "baseModel"), (ADAPTER, "base_model_name_or_path")):
        with suppress(OSError, ValueError, KeyError, TypeError):
            return str(json.loads((folder / name).read_bytes())[key])
    return str(folder)


def _stops(tokenizer: Any, dataset: Dataset, found: Summary | None, *, takes_messages: bool) -> tuple[int, ...]:
    """Tokens that end an answer: those of the run's samples, and what ends a response."""
    stops = {tokenizer.eos_token_id, *(found.stops if found else ())}
    if takes_messages:
        stops.add(int(encode([Row("a", "", "b", 1)], tokenizer, dataset, "prompt").examples.row(0)[-1]))
    return tuple(sorted(stops))


def _device(kind: str | None) -> torch.device:
    if kind is not None:
        return devices.find_device(kind)
    try:
        return devices.find_device("gpu")
    except DeviceNotFound:
        return devices.find_device("cpu")


def _compute_type(device: torch.device, found: Summary | None) -> str:
    """The type that the run computed in, where this device computes in it."""
    if device.type != "cpu":
        return "bfloat16" if found is None else found.compute_type
    return cpu.choose_precision("bf16" if found is not None and found.compute_type == "bfloat16" else "no").dtype
