r"""Turn rows into the parts of a prompt and a response, in tokens.

With E as the tokenizer's end-of-sequence token, `data_preprocess_type: neural_chat` gives

    Below is an instruction ... the request.E\n\n
    ### Instruction:\n{instruction}[### Input:\n{context}]E\n
    ### Response:\n{response}E

in these segments, each tokenised by itself. Text of the user is never read as special tokens: an E in a response
stays text, so that every example ends with exactly one E. A row with text is tokenised as it is: special tokens in
it are recognised.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from finetune_trainer.data.chat_template import ChatTemplate
from finetune_trainer.data.parts import Parts, ids_of, ids_of_markup
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INSTRUCTION = "### Instruction:\n"
INPUT = "### Input:\n"
RESPONSE = "### Response:\n"


def parts_of(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
    """The parts of each row, in the rows' order."""
    if tokenizer.eos_token_id is None:
        lacks = f"{tokenizer.name_or_path} has no end-of-sequence token"
        remedy = "name another tokenizer, or set eos_token in its tokenizer_config.json"
        raise ConfigError([f"General.tokenizer_name: {lacks}; {remedy}"])
    bodies, texts = [row for row in rows if not row.text], [row for row in rows if row.text]
    made = {False: iter(_instruction_parts(bodies, tokenizer, config)), True: iter(_text_parts(texts, tokenizer))}
    return (next(made[bool(row.text)]) for row in rows)


def _instruction_parts(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
    if not rows:
        return []
    if config.chat_template == "model":
        return ChatTemplate(tokenizer).parts(rows, config.max_source_length)
    chat = config.data_preprocess_type == "neural_chat"
    prompts = _chat_prompts(rows, tokenizer) if chat else _plain_prompts(rows, tokenizer)
    responses = ids_of(tokenizer, [row.response.strip() if chat else row.response for row in rows])
    end = tokenizer.eos_token_id
    return (Parts(*prompt, response, end) for prompt, response in zip(prompts, responses, strict=True))


def _chat_prompts(rows: Sequence[Row], tokenizer: Any) -> Iterable[tuple[list[int], list[int], list[int]]]:
    end, feed = tokenizer.eos_token_id, ids_of(tokenizer, ["\n"])[0]
    header = ids_of_markup(tokenizer, [INTRO + tokenizer.eos_token + "\n"])[0] + feed
    marker = ids_of(tokenizer, [RESPONSE])[0]
    for body in ids_of(tokenizer, [_body(row) for row in rows]):
        yield header, [*body, end, *feed], marker


def _body(row: Row) -> str:
    return INSTRUCTION + row.instruction + (INPUT + row.context if row.context else "")


def _plain_prompts(rows: Sequence[Row], tokenizer: Any) -> Iterable[tuple[list[int], list[int], list[int]]]:
    """The same text in one piece, with the special tokens that the tokenizer puts in front."""
    end = tokenizer.eos_token
    marker = len(ids_of(tokenizer, [RESPONSE])[0])
    texts = [f"{INTRO}{end}\n{_body(row)}{end}\n{RESPONSE}" for row in rows]
    for ids in tokenizer(texts)["input_ids"]:
        # Some tokenizers append E to every text, but a prompt must not end with it.
        prompt = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        yield [], prompt[:-marker], prompt[-marker:]


def _text_parts(rows: Sequence[Row], tokenizer: Any) -> Iterable[Parts]:
    if not rows:
        return
    end = tokenizer.eos_token_id
    opening = _opening(tokenizer)
    # A text may end with E already, followed by white space.
    texts = [row.text.rstrip() if row.text.rstrip().endswith(tokenizer.eos_token) else row.text for row in rows]
    for ids in ids_of_markup(tokenizer, texts):
        start = len(opening) if ids[: len(opening)] == opening else 0
        stop = len(ids)
        while stop and ids[stop - 1] == end:
            stop -= 1
        yield Parts(opening, [], [], ids[start:stop], end)


def _opening(tokenizer: Any) -> list[int]:
    """Special tokens that the tokenizer puts in front of a text."""
    bare = ids_of_markup(tokenizer, ["a"])[0]
    whole: list[int] = tokenizer("a")["input_ids"]
    return whole[: whole.index(bare[0])]
