"""The file summary.json: what report.html says of a run, for programs. It is written beside each report."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from finetune_trainer.files import write_atomically

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.output.summary import RunSummary

SUMMARY_FILE = "summary.json"
"""Name of the file below ``<output_dir>/logs``."""


class Summary(BaseModel):
    """The file, with camelCase keys."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    version: Literal[1] = 1
    config: dict[str, Any]
    """The finetuning YAML: General, Dataset, Training."""
    model_revision: str | None = None
    """Commit, tag or branch of the base model on the hub."""
    run_name: str | None = None
    ended: str = ""
    """Why the run ended early; empty: it did not."""
    measured: dict[str, str] = {}
    data: dict[str, str] = {}
    environment: dict[str, str] = {}
    compute_type: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the ranks computed in."""
    messages: bool | None = None
    """Whether the model was taught to answer prompts, which the chat template of its tokenizer makes; False: it was trained
    on texts alone; None: unknown."""
    stops: tuple[int, ...] = ()
    """Tokens that end an answer."""


def write_summary(logs: Path, summary: RunSummary) -> None:
    """Write the file into a folder, which is made.

    Raises:
        OSError: the folder is not writable, or the volume is full.
    """
    taught = summary.taught
    found = Summary(
        config=summary.run.config.model_dump(mode="json", by_alias=True),
        model_revision=summary.run.model_revision,
        run_name=summary.run.run_name,
        ended=summary.ended,
        measured=summary.measured,
        data=summary.data,
        environment=summary.environment,
        compute_type=summary.environment.get("Compute type", "float32"),
        messages=None if taught is None else bool(taught.text),
        stops=() if taught is None else taught.stops,
    )
    logs.mkdir(parents=True, exist_ok=True)
    write_atomically(logs / SUMMARY_FILE, found.model_dump_json(by_alias=True, indent=1).encode() + b"\n")


def read_summary(logs: Path) -> Summary | None:
    """The summary of the last run; None: there is none, or it is damaged."""
    with suppress(OSError, ValueError):
        return Summary.model_validate_json((logs / SUMMARY_FILE).read_bytes())
    return None
