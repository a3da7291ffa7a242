"""The file samples.json: prompts, and the answers before and after training."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, TypeAdapter

from finetune_trainer.config.run import LOGS
from finetune_trainer.files import write_atomically
from finetune_trainer.output import manifest

if TYPE_CHECKING:
    from pathlib import Path

SAMPLES_FILE = "samples.json"
"""Name of the file below ``<output_dir>/logs``."""

NEW_SAMPLES_FILE = "samples.new.json"
"""Its name until the export, while there is an older result: that one's samples.json is a part of it."""

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


def keep_samples(output_dir: Path, samples: tuple[Sample, ...]) -> None:
    """Write the samples of the run so far. As long as an older result is there, its file is left alone.

    Raises:
        OSError: the folder is not writable, or the volume is full.
    """
    logs = output_dir / LOGS
    path = logs / (NEW_SAMPLES_FILE if manifest.is_finished(output_dir) else SAMPLES_FILE)
    (logs / NEW_SAMPLES_FILE).unlink(missing_ok=True)
    if samples:
        text = json.dumps([sample.model_dump(mode="json") for sample in samples], indent=1, ensure_ascii=False)
        write_atomically(path, text.encode() + b"\n")
    else:
        path.unlink(missing_ok=True)


def take_over_samples(logs: Path) -> None:
    """Let the samples of the run be those of the result, after an older result was removed.

    Raises:
        OSError: the folder is not writable.
    """
    with suppress(FileNotFoundError):
        (logs / NEW_SAMPLES_FILE).replace(logs / SAMPLES_FILE)


def read_samples(logs: Path) -> tuple[Sample, ...]:
    """The samples of the last run; none when the file is missing or damaged."""
    for name in (NEW_SAMPLES_FILE, SAMPLES_FILE):
        with suppress(OSError, ValueError):
            return _FILE.validate_json((logs / name).read_bytes())
    return ()
