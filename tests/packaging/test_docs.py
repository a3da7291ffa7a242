"""Documents that must keep up with the code."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_operator.api.docs import render_reasons, render_reference
from finetune_operator.api.reasons import ENDED, WAITING, Reason

ROOT = Path(__file__).parents[2]


def test_every_reason_has_its_chapter_and_no_chapter_is_left_over() -> None:
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(map(str, Reason))


@pytest.mark.parametrize(("page", "rendered"), [("finetunejob.md", render_reference), ("reasons.md", render_reasons)])
def test_the_reference_is_the_rendered_one(page: str, rendered: Callable[[], str]) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == rendered(), "run `make docs`"


def test_every_reason_is_explained_once() -> None:
    assert sorted([*WAITING, *ENDED]) == sorted(Reason)


@pytest.mark.parametrize(
    "page",
    ["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "docs/benchmarks/README.md", "docs/gitops.md", "trainer_image/README.md"],
)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
