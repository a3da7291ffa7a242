r"""Turn rows into token ids: the prompt, the masked prompt, and one end-of-sequence token.

With E as the tokenizer's end-of-sequence token, `data_preprocess_type: neural_chat` gives

    Below is an instruction ... the request.E\n\n
    ### Instruction:\n{instruction}[### Input:\n{context}]E\n
    ### Response:\n{response}E

in these segments, each tokenised by itself. Text of the user is never read as special tokens: an E in a response
stays text, so that every example ends with exactly one E. A row that is a text is another matter: it is taken as it
is, with the special tokens that are written in it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_trainer.data.chat_template import ChatTemplate, Parts, ids_of, ids_of_markup
from finetune_trainer.data.jsonl import BrokenRows
from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from finetune_trainer.config.schema import Dataset
    from finetune_trainer.data.jsonl import Row

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
    lines: NDArray[np.int64]
    """Line of each row in its file, from 1."""
    name: str
    """The file as the user wrote it."""
    highest: int
    """The highest token id."""
    digest: str = ""
    """SHA-256, in hex, of all of the above but lines and name; empty for rows that are not on disk."""

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

    def place(self, index: int) -> str:
        """Where one row stands, in the manner of `data.jsonl:17`."""
        return f"{self.name}:{self.lines[index]}"


@dataclass(frozen=True)
class Encoded:
    """What became of some rows."""

    examples: Examples
    refused: tuple[tuple[int, str], ...]
    """Lines of the rows that are too long while `truncation` is off, each with the reason; they are not in `examples`."""
    cut_prompts: tuple[int, ...]
    """Lines of the rows whose prompt was cut."""
    cut_responses: tuple[int, ...]
    """Lines of the rows whose response, or whose text, was cut."""


class TooLong(Exception):  # noqa: N818 - it says what the row is
    """A row that does not fit while `truncation` is off."""


def encode_rows(rows: Sequence[Row], tokenizer: Any, config: Dataset, name: str) -> Examples:
    """Tokenise rows, cut them to the configured lengths and decide which tokens are supervised.

    Args:
        rows: at least one row.
        tokenizer: a tokenizer of transformers.
        config: the lengths and masks.
        name: the file as the user wrote it, for messages.

    Raises:
        ConfigError: the lengths leave no room for the row, the tokenizer has no end-of-sequence token, or it has no
            chat template and `chat_template` asks for it.
        DatasetInvalid: rows are too long and `truncation` is off.
    """
    encoded = encode(rows, tokenizer, config, name)
    broken = BrokenRows(name)
    broken.add(encoded.refused)
    broken.refuse()
    return encoded.examples


def encode(rows: Sequence[Row], tokenizer: Any, config: Dataset, name: str) -> Encoded:
    """As `encode_rows`; rows that are too long are told rather than refused."""
    kept: list[tuple[int, list[int], int]] = []
    refused: list[tuple[int, str]] = []
    cut: tuple[list[int], list[int]] = ([], [])
    for row, parts in zip(rows, _parts(rows, tokenizer, config), strict=True):
        try:
            prompt, prompt_is_cut = _cut_prompt(parts, config)
            response, response_is_cut = _cut_response(len(prompt), parts.response, config, f"{name}:{row.line}")
        except TooLong as error:
            refused.append((row.line, str(error)))
            continue
        kept.append((row.line, [*prompt, *response, parts.end], 0 if row.text else len(prompt)))
        for lines, is_cut in zip(cut, (prompt_is_cut, response_is_cut), strict=True):
            lines.extend([row.line] * is_cut)
    return Encoded(_pack(kept, config, name), tuple(refused), tuple(cut[0]), tuple(cut[1]))


def _parts(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
    """The parts of each row, in the rows' order."""
    if tokenizer.eos_token_id is None:
        lacks = f"{tokenizer.name_or_path} has no end-of-sequence token"
        remedy = "name another tokenizer, or set eos_token in its tokenizer_config.json"
        raise ConfigError([f"General.tokenizer_name: {lacks}; {remedy}"])
    talks, texts = [row for row in rows if not row.text], [row for row in rows if row.text]
    made = {False: iter(_talk_parts(talks, tokenizer, config)), True: iter(_text_parts(texts, tokenizer))}
    return (next(made[bool(row.text)]) for row in rows)


def _talk_parts(rows: Sequence[Row], tokenizer: Any, config: Dataset) -> Iterable[Parts]:
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
    """The same text as one piece, with the special tokens that the tokenizer puts in front."""
    end = tokenizer.eos_token
    marker = len(ids_of(tokenizer, [RESPONSE])[0])
    texts = [f"{INTRO}{end}\n{_body(row)}{end}\n{RESPONSE}" for row in rows]
    for ids in tokenizer(texts)["input_ids"]:
        # Some tokenizers close every text with E; a prompt is not closed yet.
        prompt = ids[:-1] if ids[-1] == tokenizer.eos_token_id else ids
        yield [], prompt[:-marker], prompt[-marker:]


def _text_parts(rows: Sequence[Row], tokenizer: Any) -> Iterable[Parts]:
    if not rows:
        return
    end = tokenizer.eos_token_id
    opening = _opening(tokenizer)
    # A text may be closed already; then blanks behind that would hide it.
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


def _cut_prompt(parts: Parts, config: Dataset) -> tuple[list[int], bool]:
    """The prompt, within max_source_length; and whether it had to be cut.

    Raises:
        ConfigError: the fixed parts alone are too long.
        TooLong: it is too long, and truncation is off.
    """
    fixed = len(parts.head) + len(parts.tail)
    room, talk = config.max_source_length - fixed, parts.talk
    if talk and room <= TAIL_TOKENS:
        needed = fixed + TAIL_TOKENS + 1
        raise ConfigError([f"Dataset.max_source_length: the fixed part of the prompt alone needs {needed} tokens"])
    is_cut = len(talk) > max(room, 0)
    if is_cut and not config.truncation:
        limit = f"Dataset.max_source_length {config.max_source_length}"
        raise TooLong(f"the prompt has {fixed + len(talk)} tokens, more than {limit}, and truncation is off")
    if is_cut:
        talk = talk[: room - TAIL_TOKENS] + talk[-TAIL_TOKENS:]
    return [*parts.head, *talk, *parts.tail], is_cut


def _cut_response(prompt: int, response: list[int], config: Dataset, place: str) -> tuple[list[int], bool]:
    """The response, cut to what the prompt leaves of max_length; and whether it had to be.

    Raises:
        ConfigError: there is no room at all.
        TooLong: it is too long, and truncation is off.
    """
    room = config.max_length - prompt - 1
    if len(response) <= room:
        return response, False
    if not config.truncation:
        total, limit = prompt + len(response) + 1, f"Dataset.max_length {config.max_length}"
        raise TooLong(f"the row has {total} tokens, more than {limit}, and truncation is off")
    if room < 1:
        why = f"{config.max_length} tokens leave no room for a response behind the prompt of {place}"
        raise ConfigError([f"Dataset.max_length: {why}; lower max_source_length"])
    return response[:room] if config.truncation_side == "right" else response[-room:], True


def _pack(kept: list[tuple[int, list[int], int]], config: Dataset, name: str) -> Examples:
    """Lay the rows one behind the other: of each its line, its tokens, and how many of them are prompt; none for a text."""
    lines = np.array([line for line, _, _ in kept], dtype=np.int64)
    lengths = np.array([len(ids) for _, ids, _ in kept], dtype=np.int64)
    prompts = np.array([prompt for _, _, prompt in kept], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
    tokens = np.fromiter(chain.from_iterable(ids for _, ids, _ in kept), dtype=np.int32, count=int(starts[-1]))
    first, last = np.ones_like(lengths), lengths
    if config.mask_input:
        first = np.maximum(prompts, 1)
    elif config.mask_response:
        last = np.where(prompts > 0, prompts, lengths)
    return Examples(tokens, starts, first, last, lines, name, int(tokens.max(initial=-1)))
