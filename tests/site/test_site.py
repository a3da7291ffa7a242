"""The documents as a site: every link leads somewhere, and a page loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow

LOADING = {"audio", "embed", "iframe", "img", "input", "link", "object", "script", "source", "track", "video"}
"""Elements that have the browser load something; a link of `a` waits for the reader."""

CSS_LOADS = re.compile(r"""(?:@import\s+|url\(\s*)["']?(?!data:|#)([\w-]+:)?//""")


class Page(HTMLParser):
    """What a page loads, where its links lead, and which anchors it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.classes: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, given in attrs:
            value = given or ""
            if name in {"id", "name"}:
                self.anchors.add(value)
            elif name == "class":
                self.classes |= set(value.split())
            elif name in {"src", "href", "srcset", "data", "poster"} and tag in LOADING:
                self.loaded.append(value)
            elif name == "href" and tag == "a":
                self.links.append(value)


@pytest.fixture(scope="session")
def site() -> Path:
    """The site, built by `make docs-site`; FINETUNE_SITE names one that is built already."""
    if given := os.environ.get("FINETUNE_SITE"):
        return Path(given)
    done = subprocess.run(["make", "--no-print-directory", "docs-site"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return ROOT / "build" / "site"


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    found = {path.resolve(): Page(path.read_text(encoding="utf-8")) for path in site.rglob("*.html")}
    assert len(found) > 20
    return found


def test_no_request_leaves_a_page(site: Path, pages: dict[Path, Page]) -> None:
    loaded = {value for page in pages.values() for value in page.loaded}
    assert [value for value in loaded if urlsplit(value).scheme not in {"", "data"} or value.startswith("//")] == []
    styles = [path for path in site.rglob("*.css") if CSS_LOADS.search(path.read_text(encoding="utf-8"))]
    assert styles == []
    pictures = [path for path in site.rglob("*.svg") if re.search(r'(?:href|src)="(?!#)', path.read_text(encoding="utf-8"))]
    assert pictures == []
    # The theme loads a program for diagrams from elsewhere where a page has one.
    assert [path for path, page in pages.items() if "mermaid" in page.classes] == []


def test_what_a_page_loads_is_there(pages: dict[Path, Page]) -> None:
    missing = {
        (path.name, value)
        for path, page in pages.items()
        for value in page.loaded
        if not value.startswith("data:")
        and path.name != "404.html"
        and not (path.parent / unquote(urlsplit(value).path)).exists()
    }
    assert missing == set()


def test_every_link_leads_to_a_page_and_to_a_heading_of_it(pages: dict[Path, Page]) -> None:
    broken = []
    for path, page in pages.items():
        for link in page.links:
            address = urlsplit(link)
            if address.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(address.path)).resolve() if address.path else path
            target = target / "index.html" if target.is_dir() else target
            there = pages.get(target)
            if not target.exists() or (address.fragment and there and unquote(address.fragment) not in there.anchors):
                broken.append((path.name, link))
    assert broken == []


def test_the_pages_of_the_first_hour_are_one_click_away(site: Path, pages: dict[Path, Page]) -> None:
    home = {urlsplit(link).path for link in pages[(site / "index.html").resolve()].links}
    assert {"first-hour.html", "concepts.html", "cli.html", "from-llm-on-ray.html", "reference/messages.html"} <= home
