"""Every block of commands in the documents is run, is quoted from a golden page, or says why it is not run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from tests.support.pages import ROOT, Block, all_blocks, blocks, pages

pytestmark = pytest.mark.sampled(4)

BLOCKS = all_blocks()
RUN = sorted({block.page for block in BLOCKS if not block.mark})
QUOTED = [block for block in BLOCKS if block.mark.startswith("from ")]


def test_every_block_that_is_not_run_says_why() -> None:
    reasons = re.compile(r"not run: \w+ \w+|from tests/data/pages/\w+\.txt$")
    assert [str(block) for block in BLOCKS if block.mark and not reasons.match(block.mark)] == []
    # A console shows what was printed once: it is quoted or is marked.
    assert [str(block) for block in BLOCKS if block.kind == "console" and not block.mark] == []


@pytest.mark.parametrize("block", QUOTED, ids=str)
def test_what_a_quoted_block_shows_is_what_the_program_prints(block: Block) -> None:
    golden = (ROOT / block.mark.removeprefix("from ")).read_text(encoding="utf-8").splitlines()
    shown = block.text.rstrip("\n").splitlines()
    first = golden.index(shown[0])
    assert golden[first : first + len(shown)] == shown


def test_some_pages_are_run() -> None:
    assert {"docs/first-hour.md", "docs/from-llm-on-ray.md", "docs/from-trl-and-axolotl.md"} <= set(RUN)


@pytest.mark.parametrize("page", RUN)
def test_the_commands_of_a_page_run_one_after_the_other(page: str, tmp_path: Path) -> None:
    """In a folder that has what a checkout has for its users."""
    for name in ("config_samples", "examples"):
        (tmp_path / name).symlink_to(ROOT / name)
    path = os.pathsep.join([str(_programs(tmp_path / ".bin")), os.environ["PATH"]])
    sources = os.pathsep.join([str(ROOT / "operator"), str(ROOT / "trainer_image")])
    environment = os.environ | {"PATH": path, "PYTHONPATH": sources, "KUBECONFIG": str(tmp_path / "nowhere")}
    for block in blocks(page):
        if block.mark:
            continue
        command = ["bash", "-euo", "pipefail", "-c", block.text] if block.kind == "sh" else [sys.executable, "-c", block.text]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, f"{block}\n{done.stdout}{done.stderr}"


def _programs(folder: Path) -> Path:
    """The commands as this checkout has them, however it is installed."""
    folder.mkdir()
    for name, module in (("finetune", "finetune_client.cli"), ("llm_on_ray-finetune", "finetune_trainer")):
        (folder / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {module} "$@"\n')
        (folder / name).chmod(0o755)
    return folder


def test_every_module_that_a_page_has_run_is_there() -> None:
    """Blocks that are not run, and commands within the text, too. What was renamed may only stand in the changelog."""
    named = {
        (page, name)
        for page in pages()
        if page != "CHANGELOG.md"
        for name in re.findall(r"python -m ((?:finetune_|tests\.)[\w.]+\w)", (ROOT / page).read_text(encoding="utf-8"))
    }
    assert named
    assert [f"{page}: {name}" for page, name in sorted(named) if find_spec(name) is None] == []


def test_all_pages_are_looked_at() -> None:
    assert {"README.md", "docs/cli.md", "docs/reference/messages.md", "trainer_image/README.md"} <= set(pages())
