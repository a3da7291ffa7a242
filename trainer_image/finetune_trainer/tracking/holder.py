"""Who has the output folder: the file logs/run.lock, which every writer of the folder looks at before it writes.

runtime/lock.py takes the folder for a run; this module tells whether the run has it still.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import AwareDatetime, BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from finetune_trainer.errors import OutputInUse

if TYPE_CHECKING:
    from pathlib import Path

    from finetune_trainer.config.run import Run

LOCK_FILE = "run.lock"
"""Name of the file below ``<output_dir>/logs``."""


class Holder(BaseModel):
    """The content of the file: the start of the command that has the folder, or was the last to have it."""

    model_config = ConfigDict(frozen=True, alias_generator=to_camel, populate_by_name=True)

    token: str
    """Identifies this start of the command."""
    run_name: str | None
    attempt: int
    host: str
    process: int
    since: AwareDatetime
    machine: str
    """Where the number of the process means something; the return value of `host.machine`."""
    process_start: str
    """The return value of `host.process_start`."""
    ended: bool = False
    """Whether it has let go of the folder."""

    def __str__(self) -> str:
        which = f"attempt {self.attempt} at run {self.run_name}" if self.run_name else "another run"
        return f"{which} (process {self.process} on host {self.host}, since {self.since:%Y-%m-%d %H:%M:%S} UTC)"


def read_holder(logs: Path) -> Holder | None:
    """Who has the folder; None: nobody has, or had it when it ended unfinished.

    Raises:
        OSError: the file cannot be read at present.
        pydantic.ValidationError: it has another content.
    """
    try:
        return Holder.model_validate_json((logs / LOCK_FILE).read_bytes())
    except FileNotFoundError:
        return None


def check_still_held(run: Run) -> None:
    """Refuse to write into an output folder that the run does not have any more. Without a lock there is nothing to check.

    Raises:
        OutputInUse: a newer attempt or another run has taken it, or the lock was deleted.
    """
    if run.lock is None:
        return
    try:
        holder = read_holder(run.logs)
    except ValueError:
        holder = None
    except OSError:
        return  # for example, the server of the volume is away: the write itself will tell
    if holder is None or holder.token != run.lock:
        who = "its lock was deleted" if holder is None else f"{holder} has taken it"
        mine = f"attempt {run.attempt}" if run.run_name else "this run"
        raise OutputInUse(f"{run.output_dir}: {who}: {mine} ends, and writes nothing more there")
