"""In a cluster: keep a copy of progress.json where the Ray dashboard serves it, for the operator to read.

It runs in the driver, which Ray places on the head node, next to the dashboard.
"""

from __future__ import annotations

import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from finetune_trainer.files import write_atomically
from finetune_trainer.tracking.poller import Poller
from finetune_trainer.tracking.progress import PROGRESS_FILE, RAY_LOG_FILE

POLL_SECONDS = 0.25
"""How often the file is looked at: a change is seen by the dashboard within half a second."""


DEFAULT_LOG_FOLDER = Path(tempfile.gettempdir()) / "ray" / "session_latest" / "logs"
"""Ray's log folder on this node, before the driver has connected to its session."""


def session_log_folder() -> Path | None:
    """The log folder of the session that this process is connected to; None: to none."""
    if "ray" not in sys.modules:
        return None
    import ray

    node = ray._private.worker._global_node if ray.is_initialized() else None  # noqa: SLF001 - there is no public way
    return None if node is None else Path(node.get_logs_dir_path())


class Mirror(Poller):
    """A thread that copies the progress file whenever it changes."""

    def __init__(self, logs: Path) -> None:
        super().__init__("progress-mirror", POLL_SECONDS)
        self._source = logs / PROGRESS_FILE
        self._folder = DEFAULT_LOG_FOLDER
        self._copied: tuple[Path, bytes] | None = None

    def poll(self) -> None:
        """Copy the file if it has changed."""
        # A full disk or a log folder that does not exist yet must not end the run; the next poll tries again.
        with suppress(OSError):
            # The last copy, which tells how the run ended, is made after the driver has left its session.
            self._folder = session_log_folder() or self._folder
            copy = self._folder, self._source.read_bytes()
            if copy != self._copied and copy[0].is_dir():
                write_atomically(copy[0] / RAY_LOG_FILE, copy[1])
                self._copied = copy
