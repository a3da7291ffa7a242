"""What README and the pages quote is true: files that commands name exist, and messages are the program's."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.support.chart import ROOT

from finetune_client import grammar
from finetune_trainer.data.jsonl import check_rows
from finetune_trainer.errors import DatasetInvalid

PAGES = ("README.md", "trainer_image/README.md", "docs/cli.md", "docs/suspend-and-retry.md")
BLOCK = re.compile(r"^```(?:sh|console)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[str]:
    """The lines of a page's command blocks that are typed, without comments."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = [line for block in BLOCK.findall(text) for line in block.splitlines()]
    return [re.split(r"\s+#", line.removeprefix("$ "))[0].strip() for line in lines]


@pytest.mark.parametrize("page", PAGES)
def test_files_that_commands_name_exist(page: str) -> None:
    named = [name for line in commands(page) for name in re.findall(r"(?:config_samples|examples|charts|tests)/[\w./-]+", line)]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert not [line for line in commands(page) if "conf.yaml" in line]


@pytest.mark.parametrize("page", PAGES)
def test_commands_of_finetune_are_ones_that_it_takes(page: str) -> None:
    typed = [line for line in commands(page) if re.match(r"finetune [a-z]", line)]
    choices = {"suspend|resume|cancel|retry": "suspend", "NAME": "demo", "FILE": "job.yaml"}
    for line in typed:
        words = [choices.get(word, word) for word in line.split()]
        grammar.build().parse_args(words[1:])
    assert typed or page == "trainer_image/README.md"


def test_the_broken_row_of_the_readme_is_reported_in_these_words(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "response": "b"}] * 16 + [{"instruction": "a"}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetInvalid) as error:
        check_rows(path, "train.jsonl")
    assert f"{error.value.reason}: {error.value}" in (ROOT / "README.md").read_text(encoding="utf-8")
