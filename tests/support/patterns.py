"""Texts that match a regular expression, drawn by a seed and up to a length."""

from __future__ import annotations

import functools
import re
import string
from random import Random
from re import _constants as codes
from re import _parser as parser
from typing import Any

SHORT = 3
"""Repetitions of a part that may be repeated without end, once the first such part has taken its share."""


class _Sampler:
    def __init__(self, random: Random, share: int) -> None:
        self.random = random
        self.share: int | None = share
        """Repetitions of the first part without end."""

    def sample(self, tokens: Any) -> str:
        return "".join(self._one(code, argument) for code, argument in tokens)

    def _one(self, code: Any, argument: Any) -> str:
        if code is codes.LITERAL:
            return chr(argument)
        if code is codes.IN:
            return self.random.choice(_members(tuple(argument)))
        if code is codes.SUBPATTERN:
            return self.sample(argument[3])
        if code is codes.BRANCH:
            return self.sample(self.random.choice(argument[1]))
        if code is codes.MAX_REPEAT:
            return self._repeat(*argument)
        if code is codes.AT:
            return ""
        raise NotImplementedError(f"{code} in a pattern of the schema")

    def _repeat(self, least: int, most: Any, tokens: Any) -> str:
        if most is not codes.MAXREPEAT:
            count = most if self.share else self.random.randint(least, most)
        elif self.share is not None:
            count, self.share = max(least, self.share), None
        else:
            count = self.random.randint(least, least + SHORT)
        if len(tokens) == 1 and tokens[0][0] is codes.IN:
            return "".join(self.random.choices(_members(tuple(tokens[0][1])), k=count))
        return "".join(self.sample(tokens) for _ in range(count))


VISIBLE = "".join(map(chr, range(33, 127)))
"""What is drawn where a pattern says only what a character is not."""


@functools.cache
def _members(ranges: tuple[Any, ...]) -> str:
    if ranges[0][0] is codes.NEGATE:
        excluded = _members(ranges[1:])
        return "".join(character for character in VISIBLE if character not in excluded)
    characters = ""
    for code, argument in ranges:
        if code is codes.RANGE:
            characters += "".join(map(chr, range(argument[0], argument[1] + 1)))
        elif code is codes.LITERAL:
            characters += chr(argument)
        elif (code, argument) == (codes.CATEGORY, codes.CATEGORY_SPACE):
            characters += string.whitespace
        else:
            raise NotImplementedError(f"{code} in a pattern of the schema")
    return characters


_parsed = functools.cache(parser.parse)


def draw_match(random: Random, pattern: str, least: int, most: int, length: int) -> str:
    """A text that matches, of at least and at most so many characters, and of `length` if one is found in time."""
    best: str | None = None
    for share in [*range(length, max(-1, length - 40), -1), 0, *range(SHORT + 1)] * 3:
        text = _Sampler(random, share).sample(_parsed(pattern))
        if len(text) == length and least <= length <= most:
            best = text
            break
        if least <= len(text) <= most and (best is None or abs(len(text) - length) < abs(len(best) - length)):
            best = text
    assert best is not None, f"no text of {least} to {most} characters found for {pattern}"
    assert re.fullmatch(pattern, best)
    return best
