"""Turn rows into token ids, cut to the configured lengths, and mark the supervised tokens."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from finetune_trainer.data.examples import Encoded, Examples
from finetune_trainer.data.jsonl import BrokenRows
from finetune_trainer.data.prompts import parts_of
from finetune_trainer.data.truncation import TooLong, cut_prompt, cut_response, split_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.jsonl import Row


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
    """Encode as `encode_rows` does, but return the rows that are too long instead of raising an error.

    A long text becomes several examples, one for each block.
    """
    kept: list[tuple[int, list[int], int]] = []
    refused: list[tuple[int, str]] = []
    cut: tuple[list[int], list[int]] = ([], [])
    for row, parts in zip(rows, parts_of(rows, tokenizer, config), strict=True):
        if row.text:
            whole = [*parts.head, *parts.response, parts.end]
            kept.extend((row.line, block, 0) for block in split_text(whole, config.longest_block))
            continue
        try:
            prompt, prompt_is_cut = cut_prompt(parts, config)
            response, response_is_cut = cut_response(len(prompt), parts.response, config, f"{name}:{row.line}")
        except TooLong as error:
            refused.append((row.line, str(error)))
            continue
        kept.append((row.line, [*prompt, *response, parts.end], len(prompt)))
        for lines, is_cut in zip(cut, (prompt_is_cut, response_is_cut), strict=True):
            lines.extend([row.line] * is_cut)
    examples = replace(_pack(kept, config, name), asked=_first_asked(rows, set(cut[0])))
    return Encoded(examples, tuple(refused), tuple(cut[0]), tuple(cut[1]))


def _first_asked(rows: Sequence[Row], cut: set[int]) -> tuple[str, str] | None:
    """Instruction and context of the first row whose prompt was not cut, else of the first row; None: there are only texts."""
    asking = [row for row in rows if not row.text]
    row = next((row for row in asking if row.line not in cut), asking[0] if asking else None)
    return None if row is None else (row.instruction, row.context)


def _pack(kept: list[tuple[int, list[int], int]], config: Dataset, name: str) -> Examples:
    """Concatenate examples, each given by its line, its tokens, and the number of tokens of its prompt, 0 for a text."""
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
