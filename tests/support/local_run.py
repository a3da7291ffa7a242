"""``finetune run --local`` in a process of its own, which is sent signals."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path


class Local:
    """The command in a process group of its own, as a shell starts it."""

    def __init__(self, folder: Path, command: list[str]) -> None:
        self.folder = folder
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, cwd=folder, process_group=0, **pipes)

    @property
    def outputs(self) -> list[Path]:
        """Output folders of jobs, below the folders that stand for claims."""
        return sorted(path.parents[1] for path in self.folder.glob("finetune-output/*/*/logs/progress.json"))

    def wait_for(self, step: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and self.process.poll() is None:
            if any(json.loads((path / "logs" / "progress.json").read_text())["step"] >= step for path in self.outputs):
                return
            time.sleep(0.02)
        raise AssertionError(self.process.communicate() if self.process.poll() is not None else "no step was taken")

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=120)
        return self.process.returncode, out, err
