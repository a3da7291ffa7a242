"""Documents that must keep up with the code."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic.alias_generators import to_camel

from finetune_operator.api.docs import render_reasons, render_reference
from finetune_operator.api.policy import ANNOTATIONS, SYSTEM_PRIORITY_CLASSES, SYSTEM_TAINTS, TOKEN_SECRETS, VARIABLES, Limits
from finetune_operator.api.reasons import ENDED, WAITING, Reason
from finetune_operator.api.schema import crd_schema
from finetune_operator.api.variables import REFUSED

ROOT = Path(__file__).parents[2]


def test_every_reason_has_its_chapter_and_no_chapter_is_left_over() -> None:
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(map(str, Reason))


@pytest.mark.parametrize(("page", "rendered"), [("finetunejob.md", render_reference), ("reasons.md", render_reasons)])
def test_the_reference_is_the_rendered_one(page: str, rendered: Callable[[], str]) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == rendered(), "run `make docs`"


def test_the_page_on_security_lists_what_is_allowed_and_what_is_refused() -> None:
    text = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    words = {word for kind in REFUSED for word in (*kind.names, *kind.prefixes, *kind.parts, *kind.endings, *kind.except_for)}
    lists = {*VARIABLES, *ANNOTATIONS, *TOKEN_SECRETS, *(f"{prefix}*" for prefix in SYSTEM_TAINTS + SYSTEM_PRIORITY_CLASSES)}
    assert [word for word in sorted(words | lists) if f"`{word}`" not in text] == []
    keys = {to_camel(name) for name in Limits.model_fields}
    assert [key for key in sorted(keys) if f"| `{key}` |" not in text] == []


def test_every_reason_is_explained_once() -> None:
    assert sorted([*WAITING, *ENDED]) == sorted(Reason)


def fields(schema: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """(path of the object, field) of every field below a schema."""
    for name, inner in schema.get("properties", {}).items():
        yield path, name
        mark = f"{path}.{name}"
        while "items" in inner:
            inner, mark = inner["items"], f"{mark}[]"  # noqa: PLW2901 - down to what the list holds
        yield from fields(inner, mark)


@pytest.mark.parametrize("part", ["spec", "status"])
def test_every_field_has_a_row_under_the_heading_of_its_object(part: str) -> None:
    chapters = dict(chapter.split("\n", 1) for chapter in render_reference().split("\n## ")[1:])
    rows = {path: re.findall(r"^\| `(\w+)` \| .+ \| \w.+ \|$", text, re.MULTILINE) for path, text in chapters.items()}
    assert [(path, name) for path, name in fields(crd_schema()["properties"][part], part) if name not in rows[path]] == []


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "ARCHITECTURE.md",
        "CONTRIBUTING.md",
        "docs/benchmarks/README.md",
        "docs/failures.md",
        "docs/gitops.md",
        "docs/intel.md",
        "docs/queues.md",
        "docs/suspend-and-retry.md",
        "trainer_image/README.md",
    ],
)
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
