"""Rows that are too long: the middle of a prompt and the end or the start of a response are cut, a text is split."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import TYPE_CHECKING

from finetune_trainer.errors import ConfigError

if TYPE_CHECKING:
    from finetune_trainer.config.dataset import Dataset
    from finetune_trainer.data.parts import Parts


TAIL_TOKENS = 3
"""Tokens that are kept at the end of a prompt that is cut in the middle, as in llm-on-ray: E and the line feed."""


class TooLong(Exception):  # noqa: N818 - it says what the row is
    """A row is too long, and `truncation` is off."""


def longest_prompt(config: Dataset, needed: int) -> int:
    """Tokens of the longest prompt: by default those that a prompt needs fit in any case, if at all."""
    if config.max_source_length is not None:
        return config.max_source_length
    return max(config.longest_prompt, min(needed, config.max_length - 2))


def cut_prompt(parts: Parts, config: Dataset) -> tuple[list[int], bool]:
    """The prompt, cut to the longest one, and whether it was cut.

    Raises:
        ConfigError: the fixed parts alone are too long.
        TooLong: it is too long, and truncation is off.
    """
    fixed, body = len(parts.head) + len(parts.tail), parts.body
    needed = max(parts.least, fixed + TAIL_TOKENS + 1)
    longest = longest_prompt(config, needed)
    room = longest - fixed
    if body and room <= TAIL_TOKENS:
        needs = f"the fixed part of the prompt alone needs {needed} tokens"
        if config.max_source_length is None:
            raise ConfigError([f"Dataset.max_length: {needs}, which do not fit into {config.max_length} with a response"])
        raise ConfigError([f"Dataset.max_source_length: {needs}"])
    is_cut = len(body) > max(room, 0)
    if is_cut and not config.truncation:
        limit = f"Dataset.max_source_length {longest}"
        raise TooLong(f"the prompt has {fixed + len(body)} tokens, more than {limit}, and truncation is off")
    if is_cut:
        body = body[: room - TAIL_TOKENS] + body[-TAIL_TOKENS:]
    return [*parts.head, *body, *parts.tail], is_cut


def cut_response(prompt: int, response: list[int], config: Dataset, place: str) -> tuple[list[int], bool]:
    """The response, cut to what the prompt leaves of max_length, and whether it was cut.

    Raises:
        ConfigError: there is no room for a response.
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


def split_text(ids: list[int], longest: int) -> list[list[int]]:
    """A text in blocks of about the same length, so that none is a fragment without anything to predict."""
    count = math.ceil(len(ids) / longest)
    borders = [len(ids) * number // count for number in range(count + 1)]
    return [ids[start:end] for start, end in pairwise(borders)]
