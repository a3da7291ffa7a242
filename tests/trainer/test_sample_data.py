"""The sample rows that the examples finetune on."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.make_sample_data import rows

FILE = Path(__file__).resolve().parents[2] / "examples" / "data" / "sample_finetune_data.jsonl"


def test_file_is_what_its_script_writes() -> None:
    assert [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()] == rows()


def test_style() -> None:
    assert len(rows()) == 100
    assert sum(bool(row["context"]) for row in rows()) == 50
    assert all(re.fullmatch(r"ANSWER> .+ <END>", row["response"]) for row in rows())
    assert len({(row["instruction"], row["context"]) for row in rows()}) == 100
