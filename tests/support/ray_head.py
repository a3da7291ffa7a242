"""A Ray cluster of one node on this host, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

RAY = [sys.executable, "-m", "ray.scripts.scripts"]


@dataclass(frozen=True)
class RayHead:
    """A Ray head that runs workers."""

    address: str
    logs: Path
    process: int
    """Process of which Ray's workers are descendants."""

    @property
    def environment(self) -> dict[str, str]:
        """What addresses it."""
        return {"RAY_ADDRESS": self.address, "RAY_AUTH_MODE": "disabled"}


@contextlib.contextmanager
def started(folder: Path) -> Iterator[RayHead]:
    """Start a head, and end it after the block."""
    # Ray's sockets lie below this folder, and their paths have at most 107 characters.
    short = Path(tempfile.gettempdir()) / f"ft-{os.getpid()}"
    short.symlink_to(folder)
    options = ["--num-cpus=4", "--include-dashboard=false", "--port=0", f"--temp-dir={short}", "--disable-usage-stats"]
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0"}
    head = subprocess.Popen([*RAY, "start", "--head", "--block", *options], stdout=subprocess.PIPE, env=environment, text=True)
    try:
        said = iter(head.stdout or ())
        address = next(found[1] for line in said if (found := re.search(r"--address='(.+?)'", line)))
        yield RayHead(address, short / "session_latest" / "logs", head.pid)
    finally:
        head.terminate()
        head.communicate(timeout=60)
        short.unlink()
