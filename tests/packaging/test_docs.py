"""Documents that must keep up with the code."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from pydantic.alias_generators import to_camel
from tests.support.pages import ROOT, pages

from finetune_operator.api.docs import render_reasons, render_reference
from finetune_operator.api.policy import ANNOTATIONS, SYSTEM_PRIORITY_CLASSES, SYSTEM_TAINTS, TOKEN_SECRETS, VARIABLES, Limits
from finetune_operator.api.reasons import ENDED, WAITING, Reason
from finetune_operator.api.schema import crd_schema
from finetune_operator.api.variables import REFUSED

TOOLS = ROOT / "docs" / "tools"


def test_every_reason_has_its_chapter_and_no_chapter_is_left_over() -> None:
    text = (ROOT / "docs" / "reference" / "reasons.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == sorted(map(str, Reason))


@pytest.mark.parametrize(("page", "rendered"), [("finetunejob.md", render_reference), ("reasons.md", render_reasons)])
def test_the_reference_is_the_rendered_one(page: str, rendered: Callable[[], str]) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == rendered(), "run `make docs`"


def tool(name: str) -> ModuleType:
    """A script of docs/tools."""
    spec = importlib.util.spec_from_file_location(f"docs_tools_{name}", TOOLS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("page", "name"), [("messages.md", "messages"), ("llm-on-ray.md", "llm_on_ray")])
def test_pages_that_are_made_of_the_code_are_the_rendered_ones(page: str, name: str) -> None:
    assert (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8") == tool(name).render(), "run `make docs`"


def test_what_is_predicted_on_the_page_of_performance_is_what_is_predicted_today() -> None:
    text = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
    assert text == tool("estimates").with_tables(text), "run `make docs`"
    assert text.count(" tokens/s |") > 10


def test_messages_of_every_part_are_on_their_page() -> None:
    text = (ROOT / "docs" / "reference" / "messages.md").read_text(encoding="utf-8")
    for message in (
        "| there is no kubeconfig with a context",
        "the last argument is CLAIM:PATH",
        "- …: the file has no rows",
        "there is no config.json in …",
        "the API server does not know RayClusters",
    ):
        assert message.removeprefix("| ") in text
    assert set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) <= set(map(str, Reason))


def test_every_key_of_llm_on_ray_is_told() -> None:
    text = (ROOT / "docs" / "reference" / "llm-on-ray.md").read_text(encoding="utf-8")
    told = dict(re.findall(r"^\| `([\w.]+)` \| (.+) \|$", text, re.MULTILINE))
    assert told["Training.epochs"] == "as it is"
    assert "DeepSpeed is not supported" in told["Training.deepspeed_config_file"]
    assert "left out" in told["Training.max_train_step"]
    assert "--token-secret" in told["General.config.use_auth_token"]


def test_the_pictures_of_commands_are_drawn_of_what_they_print_today() -> None:
    pictures = tool("pictures")
    for name, text in (("status", pictures.status_page()), ("watch", pictures.watch_table())):
        assert (ROOT / "docs" / "pictures" / f"{name}.svg").read_text(encoding="utf-8") == pictures.terminal(text), (
            "run `make docs`"
        )


def test_the_pictures_are_small_and_load_nothing() -> None:
    drawn = sorted((ROOT / "docs" / "pictures").iterdir())
    assert [path.name for path in drawn] == ["report.svg", "status.svg", "watch.svg"]
    assert sum(path.stat().st_size for path in drawn) < 100_000
    for path in drawn:
        elements = list(ET.fromstring(path.read_text(encoding="utf-8")).iter())
        values = [value for element in elements for name, value in element.items() if name.rpartition("}")[2] in {"href", "src"}]
        assert [value for value in values if not value.startswith("#")] == []
        assert [element.tag for element in elements if element.tag.rpartition("}")[2] in {"image", "script", "img"}] == []


def test_links_of_a_page_become_links_of_the_site() -> None:
    names = {"README.md": "index.md", "docs/cli.md": "cli.md", "docs/reference/reasons.md": "reference/reasons.md"}
    page = tool("lay_out").site_page
    for link, made in {
        "[a](docs/cli.md#run)": "[a](cli.md#run)",
        "[`b`](docs/reference/reasons.md)": "[`b`](reference/reasons.md)",
        "[code](operator)": "code",
        "`[c](docs/cli.md)`": "`[c](docs/cli.md)`",
        "[d](nowhere.md)": "[d](nowhere.md)",
        "[e](https://example.org/docs)": "[e](https://example.org/docs)",
    }.items():
        assert page(f"so {link} it is", "README.md", names) == f"so {made} it is"
    assert page("[home](../../README.md)", "docs/reference/reasons.md", names) == "[home](../index.md)"
    assert page("[up](../cli.md)", "docs/reference/reasons.md", names) == "[up](../cli.md)"


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


@pytest.mark.parametrize("page", pages())
def test_every_link_of_a_page_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)\s]*)?\)", text) if "://" not in link]
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []
