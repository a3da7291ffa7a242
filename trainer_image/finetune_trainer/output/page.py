"""Parts of the HTML pages: each page is one file that needs nothing else. Whatever comes from outside is escaped."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


def document(title: str, lead: str, body: str) -> str:
    """The page; title and lead are text, the body is HTML."""
    style = Path(__file__).with_name("report.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style>\n</head>\n"
        f'<body>\n<main>\n<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n{body}</main>\n</body>\n</html>\n'
    )


def section(title: str, body: str) -> str:
    """A part of the page; nothing when there is nothing to tell."""
    return f"<section>\n<h2>{title}</h2>\n{body}</section>\n" if body else ""


def figures(drawn: Mapping[str, str]) -> str:
    """Plots: a title → an SVG element."""
    found = (f"<figure><figcaption>{title}</figcaption>{svg}</figure>\n" for title, svg in drawn.items())
    return f'<div class="plots">\n{"".join(found)}</div>\n'


def items(lines: Iterable[str]) -> str:
    """A list of lines of HTML; nothing when there are none."""
    text = "".join(f"<li>{line}</li>\n" for line in lines)
    return f"<ul>\n{text}</ul>\n" if text else ""


def table(values: Mapping[str, Any]) -> str:
    """Keys and values; nothing when there are none."""
    rows = (f"<tr><th>{escape(key)}</th><td>{escape(word(value))}</td></tr>\n" for key, value in values.items())
    lines = "".join(rows)
    return f'<div class="table"><table>\n{lines}</table></div>\n' if lines else ""


def side_by_side(heads: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    """A column for each head, which is HTML; a key → its text in each column. Nothing when there are no rows."""
    if not rows:
        return ""
    first = "".join(f'<th scope="col">{head}</th>' for head in heads)
    lines = "".join(
        f"<tr><th>{escape(key)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>\n" for key, cells in rows.items()
    )
    return f'<div class="table columns"><table>\n<tr><th></th>{first}</tr>\n{lines}</table></div>\n'


def details(title: str, body: str) -> str:
    """A part that is shown when it is asked for; nothing when there is nothing to tell."""
    return f"<details><summary>{title}</summary>\n{body}</details>\n" if body else ""


def word(value: Any) -> str:
    """A value as it may be written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)
