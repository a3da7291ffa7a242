"""The prompt that the model was taught: its text, its ids and its chat template, for the export, the card and the report."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from finetune_trainer.data.encode import encode_rows
from finetune_trainer.data.jsonl import Row
from finetune_trainer.data.llm_on_ray_prompt import INPUT
from finetune_trainer.data.prompts import prompts_of

if TYPE_CHECKING:
    from finetune_trainer.config.dataset import Dataset

Message = dict[str, str]


@dataclass(frozen=True)
class Taught:
    """What the model was taught to answer to."""

    text: str
    """The prompt of one row, special tokens included; empty: there were only texts, without a prompt."""
    ids: tuple[int, ...]
    template: str | None
    """The chat template that makes such prompts; None: the tokenizer keeps its own."""
    asked: Message | tuple[int, ...] | None
    """The prompt of the first sample as a message of the user, or as ids where no message gives it; None: no samples."""
    stops: tuple[int, ...]
    """Tokens that end an answer."""


def describe_prompt(
    tokenizer: Any, config: Dataset, row: tuple[str, str] | None, samples: tuple[list[int], ...], stops: tuple[int, ...]
) -> Taught:
    """Describe the prompt that the model is taught.

    Args:
        tokenizer: the tokenizer as it was loaded.
        config: how prompts are made.
        row: instruction and context of a row; None: there are only texts.
        samples: the sample prompts in ids.
        stops: tokens that end an answer.
    """
    if row is None:
        return Taught("", (), None, tuple(samples[0]) if samples else None, stops)
    prompts = prompts_of(tokenizer, config)
    unmasked = config.model_copy(update={"mask_input": True})
    examples = encode_rows([Row(*row, "?", 1)], tokenizer, unmasked, "row")
    ids = examples.row(0)[: examples.first[0]].tolist()
    asked = _message_of(tokenizer, prompts, samples[0]) if samples else None
    return Taught(tokenizer.decode(ids), tuple(ids), prompts.template, asked, stops)


def _message_of(tokenizer: Any, prompts: Any, ids: list[int]) -> Message | tuple[int, ...]:
    """The message that the template makes this prompt of; the ids if there is none, for example since the prompt was cut."""
    text = tokenizer.decode(ids)
    before, after = prompts.around
    content = text[len(before) : len(text) - len(after)]
    instruction, is_there, context = content.partition(INPUT)
    candidates = [{"content": instruction, "context": context}] if is_there else []
    for message in (*candidates, {"content": content}):
        made = tokenizer.apply_chat_template(
            [{"role": "user", **message}], chat_template=prompts.template, add_generation_prompt=True, return_dict=True
        )
        if list(made["input_ids"]) == ids:
            return message
    return tuple(ids)


def teach_template(tokenizer: Any, template: str | None) -> None:
    """Give a tokenizer the template of the prompt that was trained, as its default one."""
    if template is None:
        return
    if isinstance(tokenizer.chat_template, dict):
        tokenizer.chat_template = tokenizer.chat_template | {"default": template}
    else:
        tokenizer.chat_template = template
