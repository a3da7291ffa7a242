"""What README and the pages quote is true: files that commands name exist, and messages are the program's."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
from tests.support.pages import ROOT, all_blocks, blocks

from finetune_client import grammar
from finetune_trainer.data.jsonl import check_rows
from finetune_trainer.errors import DatasetInvalid

PAGES = sorted({block.page for block in all_blocks()})


def commands(page: str) -> list[str]:
    """The lines of a page's command blocks that are typed, without comments."""
    return [line for block in blocks(page) if block.kind != "python" for line in block.typed]


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
        words = [choices.get(word, word) for word in shlex.split(line.partition(" > ")[0])]
        grammar.build().parse_args(words[1:])


def test_the_pages_of_commands_are_looked_at() -> None:
    assert {"README.md", "docs/cli.md", "docs/first-hour.md", "docs/suspend-and-retry.md", "trainer_image/README.md"} <= set(
        PAGES
    )


def test_the_broken_row_of_the_readme_is_reported_in_these_words(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "response": "b"}] * 16 + [{"instruction": "a"}]
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DatasetInvalid) as error:
        check_rows(path, "train.jsonl")
    assert f"{error.value.reason}: {error.value}" in (ROOT / "README.md").read_text(encoding="utf-8")
