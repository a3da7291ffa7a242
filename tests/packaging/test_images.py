"""The Dockerfiles, as a linter reads them."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HADOLINT = Path(sysconfig.get_path("scripts")) / "hadolint"


def lint(path: Path) -> tuple[int, str]:
    """What hadolint says of a Dockerfile, and of the shell scripts in it."""
    done = subprocess.run([HADOLINT, "--no-color", path], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["Dockerfile", "trainer_image/Dockerfile"])
def test_linter_finds_nothing(name: str) -> None:
    assert lint(ROOT / name) == (0, "")


def test_linter_would_find_a_broken_script(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text((ROOT / "trainer_image" / "Dockerfile").read_text().replace("    fi\n", "\n", 1))
    code, said = lint(broken)
    assert code == 1
    assert "fi" in said
