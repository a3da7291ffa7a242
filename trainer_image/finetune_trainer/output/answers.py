"""Prompts and answers as a run keeps them: samples.json."""

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
    """What the model has made of a prompt."""

    model_config = ConfigDict(frozen=True)

    text: str
    stopped: bool
    """Whether the model ended the answer by itself; otherwise it was cut."""


class Sample(BaseModel):
    """A prompt with its answers."""

    model_config = ConfigDict(frozen=True)

    row: str
    """Where the row stands, as `data.jsonl:17`."""
    prompt: str
    """As the model gets it, without special tokens."""
    expected: str
    """The rest of the row."""
    before: Answer | None = None
    """Of the model before the first step; None: it was not kept."""
    after: Answer | None = None
    """Of the model after the last step."""


_FILE = TypeAdapter(tuple[Sample, ...])


def read_samples(logs: Path) -> tuple[Sample, ...]:
    """What was asked in a run; nothing when the file is missing or harmed."""
    with suppress(OSError, ValueError):
        return _FILE.validate_json((logs / SAMPLES_FILE).read_bytes())
    return ()
