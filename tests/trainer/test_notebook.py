"""The notebook of examples/: its cells, one after the other, with a tiny model in the place of the one that it downloads."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.trainer import make_model, make_tokenizer
from tests.trainer.test_labels import CHATML

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "finetune.ipynb"


def test_the_notebook_is_kept_without_what_a_run_of_it_leaves() -> None:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert [cell for cell in cells if cell["outputs"] or cell["execution_count"]] == []


@pytest.mark.slow
def test_the_notebook_trains_shows_the_loss_and_asks(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    make_model("llama", tokenizer, tmp_path / "models" / "SmolLM2-135M-Instruct")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    (tmp_path / "cells.py").write_text("\n\n".join("".join(cell["source"]) for cell in cells))
    settings = {"FINETUNE_MODELS": str(tmp_path / "models"), "FINETUNE_STEPS": "4", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "cells.py"]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert re.search(r"loss \d\.\d+ at the first step, \d\.\d+ at the last of 4", done.stdout)
    assert done.stdout.count("  before: ") == done.stdout.count("  expected: ") == 2
    assert "phase: Succeeded" in done.stdout
