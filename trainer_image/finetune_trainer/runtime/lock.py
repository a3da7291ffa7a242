"""Take the output folder for one start of the command, so that no two runs write into it.

The lock is a file with the holder in it (tracking/holder.py), not a lock of the operating system: those do not hold on all
network volumes. The holder touches the file every few seconds. Whoever wants the folder decides by what it sees itself:

* A newer attempt at the same run takes the folder at once; an older one is refused at once, or ends before its next write.
* A process of this machine is looked for by its number and the time of its start.
* Of any other holder the file is watched: if it changes, the holder lives; if it stands still for DEAD_AFTER_SECONDS by
  our own clock, the holder is dead. Times in the file are never compared with a clock, since clocks of hosts differ.

A holder that only seemed dead finds another holder in the file before its next write, and ends.
"""

from __future__ import annotations

import os
import socket
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from finetune_trainer.config.run import LOGS
from finetune_trainer.errors import OutputInUse, output_error
from finetune_trainer.files import write_atomically
from finetune_trainer.runtime import host
from finetune_trainer.tracking import console
from finetune_trainer.tracking.holder import LOCK_FILE, Holder, read_holder
from finetune_trainer.tracking.poller import Poller

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BEAT_SECONDS = 3.0
"""Seconds between two touches of the file."""

DEAD_AFTER_SECONDS = 60.0
"""How long the file of a living holder may stand still: a server of a network volume may be away for a while."""

SETTLE_SECONDS = 0.5
"""Time for another start that has judged the same holder dead to take the folder, too: the last one has it."""


@dataclass(frozen=True)
class Claim:
    """Who wants an output folder."""

    output_dir: Path
    run_name: str | None
    attempt: int

    @property
    def logs(self) -> Path:
        """Where the lock is."""
        return self.output_dir / LOGS


@dataclass
class Held:
    """The output folder is held."""

    token: str
    """The lock, for Run.lock."""
    complete: bool = False
    """Whether the folder holds a complete result: its manifest then tells whose it is, and no lock stays behind."""


@contextmanager
def hold(claim: Claim, dead_after: float = DEAD_AFTER_SECONDS) -> Iterator[Held]:
    """Hold an output folder during the block.

    Args:
        claim: who wants it.
        dead_after: for how many seconds the file of another host's holder has to stand still.

    Raises:
        OutputInUse: another run, or a newer attempt at this one, has it.
        OutputVolumeFull: no space is left for the lock.
        OutputNotWritable: the folder is not writable.
    """
    path = claim.logs / LOCK_FILE
    try:
        claim.logs.mkdir(parents=True, exist_ok=True)
        held = Held(_take(claim, path, dead_after))
    except OSError as error:
        raise output_error(claim.output_dir, error) from error
    try:
        with _Heartbeat(path, held.token):
            yield held
    finally:
        with suppress(OSError, ValueError):
            _let_go(path, held)


def _take(claim: Claim, path: Path, dead_after: float) -> str:
    """Wait until the folder is free, and take it; return the token."""
    watched, mine = _Watched(dead_after), _describe(claim)
    while True:
        seen = _look(path)
        if seen is None:
            if _create(path, _text(mine)):
                return mine.token
        elif seen.holder is not None and seen.holder.token == mine.token:
            return mine.token  # NFS may say that a link exists which it has just made, when its first answer was lost
        elif _is_free(claim, seen, watched):
            write_atomically(path, _text(mine))
            time.sleep(SETTLE_SECONDS)
            holder = read_holder(claim.logs)
            if holder is not None and holder.token == mine.token:
                return mine.token
        else:
            time.sleep(min(0.2, dead_after / 4))


@dataclass(frozen=True)
class _Seen:
    """What is seen of the file."""

    holder: Holder | None
    """None: the content is none of ours."""
    mark: tuple[int, int, bytes]
    """Differs after each touch."""


class _Watched:
    """Tells by our own clock whether the file stands still."""

    def __init__(self, dead_after: float) -> None:
        self._dead_after = dead_after
        self._mark: tuple[int, int, bytes] | None = None
        self._since = 0.0

    def judge(self, seen: _Seen) -> str:
        """Dead or alive; empty: that is not known yet."""
        now, before = time.monotonic(), self._mark
        if seen.mark != before:
            self._mark, self._since = seen.mark, now
            if before is None:
                who = seen.holder or "another run"
                limit = f"{self._dead_after:.0f} s at most"
                console.stage(f"looking whether {who} is still at work in the output folder, for {limit}")
            return "" if before is None else "alive"
        return "dead" if now - self._since >= self._dead_after else ""


def _look(path: Path) -> _Seen | None:
    """Open and read the file: a network volume tells what is new when a file is opened, not when it is asked for by name."""
    try:
        with path.open("rb") as file:
            about, text = os.fstat(file.fileno()), file.read()
    except FileNotFoundError:
        return None
    mark = (about.st_ino, about.st_mtime_ns, text)
    try:
        return _Seen(Holder.model_validate_json(text), mark)
    except ValueError:
        return _Seen(None, mark)


def _is_free(claim: Claim, seen: _Seen, watched: _Watched) -> bool:
    """Whether the folder may be taken; False: that is not known yet.

    Raises:
        OutputInUse: it may not.
    """
    holder = seen.holder
    if holder is not None and claim.run_name is not None and holder.run_name == claim.run_name:
        if holder.attempt > claim.attempt:
            raise OutputInUse(f"{claim.output_dir}: {holder} has taken this output folder: attempt {claim.attempt} is older, "
                              f"and does not start; a new start needs --attempt {holder.attempt} or more")  # fmt: skip
        if holder.attempt < claim.attempt:
            return True
    state = _state_here(holder) or watched.judge(seen)
    if state == "alive":
        raise OutputInUse(f"{claim.output_dir}: {holder or 'another run'} is at work in this output folder; wait for its end, or "
                          "choose another General.output_dir")  # fmt: skip
    return state == "dead"


def _state_here(holder: Holder | None) -> str:
    """Dead or alive, if the holder has let go or is a process of this machine; empty: it has to be watched."""
    if holder is None:
        return ""
    if holder.ended:
        return "dead"
    if holder.machine != host.machine():
        return ""
    start = host.process_start(holder.process)
    if start == "":
        return ""  # there is a process of this number, and the system does not tell whether it is the holder
    return "alive" if start == holder.process_start else "dead"


def _create(path: Path, text: bytes) -> bool:
    """Create the file with its content unless it exists; return whether it was created."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        draft.write_bytes(text)
        _link_or_write(draft, path, text)
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    return True


def _link_or_write(draft: Path, path: Path, text: bytes) -> None:
    try:
        os.link(draft, path)
    except FileExistsError:
        raise
    except OSError:  # a volume without links
        with path.open("xb") as file:
            file.write(text)


def _describe(claim: Claim) -> Holder:
    return Holder(
        token=uuid.uuid4().hex,
        run_name=claim.run_name,
        attempt=claim.attempt,
        host=socket.gethostname(),
        process=os.getpid(),
        since=datetime.now(UTC).replace(microsecond=0),
        machine=host.machine(),
        process_start=host.process_start(os.getpid()) or "",
    )


def _text(holder: Holder) -> bytes:
    return holder.model_dump_json(by_alias=True).encode() + b"\n"


def _let_go(path: Path, held: Held) -> None:
    holder = read_holder(path.parent)
    if holder is None or holder.token != held.token:
        return
    if held.complete:
        path.unlink()
    else:
        write_atomically(path, _text(holder.model_copy(update={"ended": True})))


class _Heartbeat(Poller):
    """Touches the file as long as it is ours."""

    def __init__(self, path: Path, token: str) -> None:
        super().__init__("lock", BEAT_SECONDS)
        self._path, self._token = path, token

    def poll(self) -> None:
        """Touch the file. What was opened is touched, even if another holder's file has taken its place meanwhile."""
        with suppress(OSError, ValueError), self._path.open("rb+") as file:
            if Holder.model_validate_json(file.read()).token == self._token:
                os.utime(file.fileno() if os.utime in os.supports_fd else self._path)
