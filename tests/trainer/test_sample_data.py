"""The sample rows that the examples finetune on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.support import make_demo_data
from tests.support.make_sample_data import rows

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "data"


@pytest.mark.parametrize(("name", "made"), [("sample_finetune_data", rows()), ("orders", make_demo_data.rows())])
def test_file_is_what_its_script_writes(name: str, made: list[dict[str, str]]) -> None:
    text = (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line) for line in text.splitlines()] == made


def test_orders_say_what_their_json_says() -> None:
    customers = []
    for row in make_demo_data.rows():
        order = json.loads(row["response"])
        customers.append(order["customer"])
        number = make_demo_data.NUMBERS[order.pop("count") - 2]
        assert all(re.search(rf"\b{word}\b", row["context"], re.IGNORECASE) for word in (number, *order.values()))
    assert len(set(customers)) == len(customers)


def test_style() -> None:
    assert len(rows()) == 100
    assert sum(bool(row["context"]) for row in rows()) == 50
    assert all(re.fullmatch(r"ANSWER> .+ <END>", row["response"]) for row in rows())
    assert len({(row["instruction"], row["context"]) for row in rows()}) == 100
