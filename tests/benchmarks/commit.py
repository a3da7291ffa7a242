"""Which commit is measured."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def commit() -> str:
    """The commit of this checkout, with ``-dirty`` where files differ from it; COMMIT, where the files have come without git."""
    asked = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    told = subprocess.run(asked, cwd=Path(__file__).parent, capture_output=True, text=True, check=False).stdout.strip()
    return os.environ.get("COMMIT") or told or "unknown"
