"""The file samples.json: prompts, and the answers before and after training."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES_FILE = "samples.json"
"""Name of the file below ``<output_dir>/logs``."""

ANSWER_TOKENS = 64
"""Tokens of the longest answer."""


class Answer(BaseModel):
    """The answer of the model to a prompt."""

    model_config = ConfigDict(frozen=True)

    text: str
    stopped: bool
    """Whether the model ended the answer by itself; otherwise it was cut."""


class Sample(BaseModel):
    """A prompt with its answers."""

    model_config = ConfigDict(frozen=True)

    row: str
    """File and line of the row, as `data.jsonl:17`."""
    prompt: str
    """The prompt, without special tokens."""
    expected: str
    """The rest of the row."""
    before: Answer | None = None
    """The answer before the first step; None: it was not kept."""
    after: Answer | None = None
    """The answer after the last step."""


_FILE = TypeAdapter(tuple[Sample, ...])


def read_samples(logs: Path) -> tuple[Sample, ...]:
    """The samples of a run; none when the file is missing or damaged."""
    with suppress(OSError, ValueError):
        return _FILE.validate_json((logs / SAMPLES_FILE).read_bytes())
    return ()
