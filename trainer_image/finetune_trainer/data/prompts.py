"""Turn rows into the parts of a prompt and a response, in tokens.

Text of the user is never read as special tokens: an end-of-sequence token in a response stays text, so that every example
ends with exactly one. A row with text is tokenised as it is: special tokens in it are recognised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template import ChatTemplate
from finetune_trainer.data.llm_on_ray_prompt import LlmOnRayPrompt
from finetune_trainer.data.parts import Parts, ids_of_markup
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row

    Prompts = ChatTemplate | LlmOnRayPrompt


def parts_of(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
    """The parts of each row, in the rows' order.

    Raises:
        ConfigError: the tokenizer lacks a token or a chat template that the configuration needs.
    """
    _check_tokens(tokenizer, config)
    bodies, texts = [row for row in rows if not row.text], [row for row in rows if row.text]
    asked = prompts_of(tokenizer, config).parts(bodies) if bodies else ()
    made = {False: iter(asked), True: iter(_text_parts(texts, tokenizer, config))}
    return (next(made[bool(row.text)]) for row in rows)


def prompts_of(tokenizer: Any, config: Dataset) -> Prompts:
    """What makes prompts of rows.

    Raises:
        ConfigError: as `parts_of`.
    """
    if config.chat_template == "model":
        return ChatTemplate(tokenizer, config)
    return LlmOnRayPrompt(tokenizer, config, _opening(tokenizer, config, always=config.data_preprocess_type != "neural_chat"))


def _check_tokens(tokenizer: Any, config: Dataset) -> None:
    if tokenizer.eos_token_id is None:
        lacks = f"{tokenizer.name_or_path} has no end-of-sequence token"
        remedy = "name another tokenizer, or set eos_token in its tokenizer_config.json"
        raise ConfigError([f"General.tokenizer_name: {lacks}; {remedy}"])
    if config.bos and tokenizer.bos_token_id is None:
        raise ConfigError(
            [f"Dataset.bos: the tokenizer {tokenizer.name_or_path} has no beginning-of-sequence token; set it to false"]
        )


def _text_parts(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
    if not rows:
        return
    end = tokenizer.eos_token_id
    opening = _opening(tokenizer, config, always=True)
    # A text may end with E already, followed by white space.
    texts = [row.text.rstrip() if row.text.rstrip().endswith(tokenizer.eos_token) else row.text for row in rows]
    for ids in ids_of_markup(tokenizer, texts):
        start = len(opening) if ids[: len(opening)] == opening else 0
        stop = len(ids)
        while stop and ids[stop - 1] == end:
            stop -= 1
        yield Parts(opening, [], [], ids[start:stop], end)


def _opening(tokenizer: Any, config: Dataset, *, always: bool) -> list[int]:
    """Special tokens in front of a text: those that the tokenizer puts there, if `always`, and the one that is asked for."""
    bare = ids_of_markup(tokenizer, ["a"])[0]
    whole: list[int] = tokenizer("a")["input_ids"]
    own = whole[: whole.index(bare[0])] if always else []
    return [tokenizer.bos_token_id, *own] if config.bos and tokenizer.bos_token_id not in own else own
