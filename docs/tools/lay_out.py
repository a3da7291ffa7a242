"""Lays out the site's pages in a folder: those of docs/, and others of the repository: ``python docs/tools/lay_out.py FOLDER``.

The pages are read in the repository, too, so their links are those between files there. Here they become links between the
pages of the site; a link to what is no part of the site, such as a folder of code, becomes its text. MkDocs then refuses
links that lead nowhere. It needs no more than Python, whatever makes the site of the folder.
"""

from __future__ import annotations

import posixpath
import re
import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PAGES = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "trainer_image/README.md": "trainer.md",
    "examples/data/README.md": "data.md",
}
"""Pages outside of docs/ → their names in the site."""

COPIED = ("config_samples/**/*.yaml", "examples/data/*.jsonl", "examples/*.ipynb", "charts/*/values.yaml")
"""Files outside of docs/ that pages link to."""

_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s#]*)(#[^()\s]*)?\)")
_CODE = re.compile(r"(^ *```.*?^ *```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)
_CODE_AS_TEXT = re.compile(r"\[`([^`\n]+)`\](?=\()")
"""A link whose text is code."""


def site_files() -> dict[str, str]:
    """Files of the repository → their names in the site."""
    docs = (path for path in (ROOT / "docs").rglob("*") if path.is_file() and path.suffix != ".py")
    named = {place(path): place(path).removeprefix("docs/") for path in docs}
    return named | {place(path): place(path) for pattern in COPIED for path in ROOT.glob(pattern)} | PAGES


def place(path: Path) -> str:
    """A path as the repository names it."""
    return path.relative_to(ROOT).as_posix()


def site_page(markdown: str, page: str, names: dict[str, str]) -> str:
    """A page with the links of the site.

    Args:
        markdown: its text.
        page: where it is in the repository.
        names: see `site_files`.
    """
    folder = posixpath.dirname(names[page]) or "."

    def site_link(match: re.Match[str]) -> str:
        bang, text, target, anchor = match[1], match[2], match[3], match[4] or ""
        if not target or ":" in target:
            return match[0]
        there = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if there in names:
            return f"{bang}[{text}]({posixpath.relpath(names[there], folder)}{anchor})"
        return text if (ROOT / there).exists() else match[0]

    # Links are looked for outside of code: every other part is a fence or a span of code.
    parts = _CODE.split(_CODE_AS_TEXT.sub("[\0\\1\0]", markdown))
    parts[::2] = [_LINK.sub(site_link, part) for part in parts[::2]]
    return "".join(parts).replace("\0", "`")


def main() -> None:
    """Lay the pages out anew in the folder that is named."""
    folder, names = Path(sys.argv[1]), site_files()
    shutil.rmtree(folder, ignore_errors=True)
    for source, name in names.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.endswith(".md"):
            target.write_text(site_page((ROOT / source).read_text(encoding="utf-8"), source, names), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, target)


if __name__ == "__main__":
    main()
