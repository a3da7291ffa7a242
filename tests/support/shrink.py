"""Makes an object that shows a failure as small as the failure allows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

TRIES = 1000


def smaller(value: Any) -> Iterator[Any]:
    """The value with one part of it left out or shortened, the largest parts first."""
    if isinstance(value, dict):
        yield from ({name: item for name, item in value.items() if name != key} for key in value)
        yield from (value | {key: inner} for key, item in value.items() for inner in smaller(item))
    elif isinstance(value, list):
        yield from (value[:index] + value[index + 1 :] for index in range(len(value)))
        yield from ([*value[:index], inner, *value[index + 1 :]] for index, item in enumerate(value) for inner in smaller(item))
    elif isinstance(value, str) and len(value) > 1:
        yield from (value[: len(value) // 2], value[len(value) // 2 :], value[1:], value[:-1])


async def shrink(value: Any, fails: Callable[[Any], Awaitable[bool]]) -> Any:
    """The smallest value found that still fails."""
    candidates = smaller(value)
    for _ in range(TRIES):
        if (candidate := next(candidates, None)) is None:
            break
        if await fails(candidate):
            value, candidates = candidate, smaller(candidate)
    return value
