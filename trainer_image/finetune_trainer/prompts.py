r"""Turn rows into token ids: the prompt text of llm-on-ray, the masked prompt, and one end-of-sequence token.

With E as the tokenizer's end-of-sequence token, `data_preprocess_type: neural_chat` gives

    Below is an instruction ... the request.E\n\n
    ### Instruction:\n{instruction}[### Input:\n{context}]E\n
    ### Response:\n{response}E

in these segments, each tokenised by itself. Text of the user is never read as special tokens: an E in a response
stays text, so that every example ends with exactly one E.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_trainer.errors import ConfigError, DatasetInvalid

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from finetune_trainer.config import Dataset
    from finetune_trainer.rows import Row

INTRO = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INSTRUCTION = "### Instruction:\n"
INPUT = "### Input:\n"
RESPONSE = "### Response:\n"

TAIL_TOKENS = 3
"""Tokens kept at the end of a prompt that is cut in the middle, as in llm-on-ray: they hold E and the line feed."""


@dataclass(frozen=True)
class Examples:
    """Token ids of all rows, one behind the other."""

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    """Where each row starts in `tokens`, and where the last one ends: one longer than there are rows."""
    first: NDArray[np.int64]
    """First supervised token of each row, counted from the row's start; at least 1, since a token is predicted from
    the one before it."""
    last: NDArray[np.int64]
    """One past the last supervised token of each row, counted from the row's start."""

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each row, prompt and response."""
        lengths: NDArray[np.int64] = self.starts[1:] - self.starts[:-1]
        return lengths

    @property
    def supervised(self) -> NDArray[np.int64]:
        """Tokens of each row that count in the loss."""
        counts: NDArray[np.int64] = np.maximum(self.last - self.first, 0)
        return counts

    def row(self, index: int) -> NDArray[np.int32]:
        """Token ids of one row."""
        return self.tokens[self.starts[index] : self.starts[index + 1]]


def encode_rows(rows: Sequence[Row], tokenizer: Any, config: Dataset, name: str) -> Examples:
    """Tokenise rows, cut them to the configured lengths and decide which tokens are supervised.

    Args:
        rows: at least one row.
        tokenizer: a tokenizer of transformers.
        config: the lengths and masks.
        name: the file as the user wrote it, for messages.

    Raises:
        ConfigError: the lengths leave no room for the row, or the tokenizer has no end-of-sequence token.
        DatasetInvalid: a row is too long and `truncation` is off.
    """
    if tokenizer.eos_token_id is None:
        raise ConfigError([f"General.tokenizer_name: {tokenizer.name_or_path} has no end-of-sequence token"])
    chat = config.data_preprocess_type == "neural_chat"
    prompts = _chat_prompts(rows, tokenizer, config, name) if chat else _plain_prompts(rows, tokenizer)
    responses = _ids(tokenizer, [row.response.strip() if chat else row.response for row in rows])
    encoded = [
        _join(prompt, response, tokenizer.eos_token_id, config, f"{name}:{row.line}")
        for row, prompt, response in zip(rows, prompts, responses, strict=True)
    ]
    return _pack(encoded, config)


def prompt_ids(row: Row, tokenizer: Any, config: Dataset) -> list[int]:
    """Token ids of one row's prompt, to generate a response from."""
    chat = config.data_preprocess_type == "neural_chat"
    prompts = _chat_prompts([row], tokenizer, config, "") if chat else _plain_prompts([row], tokenizer)
    return next(iter(prompts))


def _chat_prompts(rows: Sequence[Row], tokenizer: Any, config: Dataset, name: str) -> Iterable[list[int]]:
    end, feed = [tokenizer.eos_token_id], _ids(tokenizer, ["\n"])[0]
    header = tokenizer(INTRO + tokenizer.eos_token + "\n", add_special_tokens=False)["input_ids"] + feed
    marker = _ids(tokenizer, [RESPONSE])[0]
    room = config.max_source_length - len(header) - len(marker)
    if room <= TAIL_TOKENS:
        needed = config.max_source_length - room + TAIL_TOKENS + 1
        raise ConfigError([f"Dataset.max_source_length: the fixed part of the prompt alone needs {needed} tokens"])
    bodies = _ids(tokenizer, [_body(row) for row in rows])
    for row, body in zip(rows, bodies, strict=True):
        talk = body + end + feed
        if len(talk) > room:
            if not config.truncation:
                size, limit = (
                    len(header) + len(talk) + len(marker),
                    f"Dataset.max_source_length {config.max_source_length}",
                )
                place = f"{name}:{row.line}"
                raise DatasetInvalid(f"{place}: the prompt has {size} tokens, more than {limit}, and truncation is off")
            talk = talk[: room - TAIL_TOKENS] + talk[-TAIL_TOKENS:]
        yield header + talk + marker


def _body(row: Row) -> str:
    return INSTRUCTION + row.instruction + (INPUT + row.context if row.context else "")


def _plain_prompts(rows: Sequence[Row], tokenizer: Any) -> Iterable[list[int]]:
    """The same text as one piece, with the special tokens that the tokenizer puts in front."""
    end = tokenizer.eos_token
    texts = [f"{INTRO}{end}\n{_body(row)}{end}\n{RESPONSE}" for row in rows]
    for ids in tokenizer(texts)["input_ids"]:
        # Some tokenizers close every text with E; a prompt is not closed yet.
        yield ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids


def _ids(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    ids: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return ids


def _join(prompt: list[int], response: list[int], end: int, config: Dataset, place: str) -> tuple[list[int], int]:
    """Cut the response to what the prompt leaves of max_length, and close it. Also gives the prompt's length."""
    room = config.max_length - len(prompt) - 1
    if len(response) > room:
        if not config.truncation:
            total = len(prompt) + len(response) + 1
            limit = f"Dataset.max_length {config.max_length}"
            raise DatasetInvalid(f"{place}: the row has {total} tokens, more than {limit}, and truncation is off")
        if room < 1:
            why = f"{config.max_length} tokens leave no room for a response behind the prompt of {place}"
            raise ConfigError([f"Dataset.max_length: {why}; lower max_source_length"])
        response = response[:room] if config.truncation_side == "right" else response[-room:]
    return [*prompt, *response, end], len(prompt)


def _pack(encoded: list[tuple[list[int], int]], config: Dataset) -> Examples:
    lengths = np.array([len(ids) for ids, _ in encoded], dtype=np.int64)
    prompts = np.array([length for _, length in encoded], dtype=np.int64)
    starts = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.fromiter((token for ids, _ in encoded for token in ids), dtype=np.int32, count=int(starts[-1]))
    first, last = np.ones_like(lengths), lengths
    if config.mask_input:
        first = np.maximum(prompts, 1)
    elif config.mask_response:
        last = prompts
    return Examples(tokens, starts, first, last)
