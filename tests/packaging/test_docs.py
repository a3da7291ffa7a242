"""Documents that must keep up with the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from finetune_operator.api.v1alpha1 import Reason
from finetune_trainer.yaml_file import load_config

ROOT = Path(__file__).parents[2]


def test_every_reason_has_its_chapter_and_no_chapter_is_left_over() -> None:
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(map(str, Reason))


@pytest.mark.parametrize("sample", sorted((ROOT / "config_samples" / "finetune").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_of_the_command_line_loads_without_a_warning(sample: Path) -> None:
    assert load_config(sample, strict=True).warnings == ()


@pytest.mark.parametrize(
    "page", ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/benchmarks/README.md", "trainer_image/README.md"]
)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
