"""The report of a run: one HTML file that needs nothing else. Whatever comes from outside is escaped."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.run import REPORT_FILE
from finetune_trainer.files import write_atomically
from finetune_trainer.output import plots
from finetune_trainer.output.answers import ANSWER_TOKENS
from finetune_trainer.output.settings import settings
from finetune_trainer.output.summary import NOT_MEASURED, summarise_interrupted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from finetune_trainer.config.run import Run
    from finetune_trainer.output.answers import Answer, Sample
    from finetune_trainer.output.summary import RunSummary
    from finetune_trainer.tracking.progress import Progress

SHOWN_FIRST = 6
"""How many measurements stand at the top of the page."""


def report(summary: RunSummary) -> str:
    """The page."""
    name = escape(summary.run.config.general.base_model)
    differing, others = settings(summary.run.config)
    sections = [
        _section("Why it ended early", f"<pre>{escape(summary.ended)}</pre>\n" if summary.ended else ""),
        _section("Curves", _curves(summary.records)),
        _section("Answers before and after", "".join(map(_sample, summary.samples))),
        _section("Prompt", _prompt(summary)),
        _section("History", _list(_resumed(record) for record in summary.resumed)),
        _section("Warnings", _list(escape(text) for text in summary.warnings)),
        _section("Result", _table(summary.measured)),
        _section("Data", _table(summary.data)),
        _section("Configuration", _table(differing) + _details("Keys that have their defaults", _table(others))),
        _section("Environment", _table(summary.environment)),
    ]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Finetuning of {name}</title>\n<style>\n{Path(__file__).with_name('report.css').read_text()}</style>\n</head>\n"
        f'<body>\n<main>\n<h1>Finetuning of {name}</h1>\n<p class="lead">{escape(_lead(summary))}</p>\n'
        f"{_figures(summary.measured)}{''.join(sections)}</main>\n</body>\n</html>\n"
    )


def write_interrupted(run: Run, progress: Progress) -> None:
    """Write the report of a run that was stopped or has failed, unless it has not trained.

    Raises:
        OSError: the logs cannot be read, or the report not written.
    """
    summary = summarise_interrupted(run, progress)
    if summary is not None:
        write_atomically(run.output_dir / REPORT_FILE, report(summary).encode())


def _lead(summary: RunSummary) -> str:
    named = f"Run {summary.run.run_name}: " if summary.run.run_name else ""
    workers = f"; workers: {summary.environment['Workers']}" if summary.environment else ""
    ended = f"; ended after step {summary.steps} of {summary.total_steps}" if summary.ended else ""
    return f"{named}{summary.method}; {summary.data['Rows to train on']}{workers}{ended}"


def _figures(measured: Mapping[str, str]) -> str:
    shown = [(title, value) for title, value in list(measured.items())[:SHOWN_FIRST] if value != NOT_MEASURED]
    cells = (f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>\n" for title, value in shown)
    return f'<dl class="figures">\n{"".join(cells)}</dl>\n'


def _section(title: str, body: str) -> str:
    """A part of the page; nothing when there is nothing to tell."""
    return f"<section>\n<h2>{title}</h2>\n{body}</section>\n" if body else ""


def _curves(records: list[dict[str, Any]]) -> str:
    drawn = plots.draw(records).items()
    figures = (f"<figure><figcaption>{title}</figcaption>{svg}</figure>\n" for title, svg in drawn)
    return f'<div class="plots">\n{"".join(figures)}</div>\n'


def _prompt(summary: RunSummary) -> str:
    """The prompt that was trained, of one row."""
    if summary.taught is None or not summary.taught.text:
        return ""
    ids = ", ".join(map(str, summary.taught.ids))
    return f"<pre>{escape(summary.taught.text)}</pre>\n{_details('Its token ids', f'<pre>{ids}</pre>')}"


def _sample(sample: Sample) -> str:
    answers = _answer("Before training", sample.before, "before") + (
        _answer("After training", sample.after, "after") if sample.after else ""
    )
    expected = f"<div><h4>Expected</h4><pre>{escape(sample.expected)}</pre></div>\n"
    prompt = f"<h3>Prompt, {escape(sample.row)}</h3>\n<pre>{escape(sample.prompt)}</pre>\n"
    return f'<article>\n{prompt}<div class="answers">\n{expected}{answers}</div>\n</article>\n'


def _answer(title: str, answer: Answer | None, kind: str) -> str:
    if answer is None:
        return f'<div class="{kind}"><h4>{title}</h4><small>was not kept</small></div>\n'
    end = "ended by itself" if answer.stopped else f"cut after {ANSWER_TOKENS} tokens"
    return f'<div class="{kind}"><h4>{title} <small>{end}</small></h4><pre>{escape(answer.text)}</pre></div>\n'


def _resumed(record: Mapping[str, Any]) -> str:
    lost = f"; workers were restarted {record['restarts']} times" if record["restarts"] else ""
    return f"Attempt {record['attempt']} resumed after step {record['step']}{lost}."


def _list(items: Any) -> str:
    lines = "".join(f"<li>{item}</li>\n" for item in items)
    return f"<ul>\n{lines}</ul>\n" if lines else ""


def _table(values: Mapping[str, Any]) -> str:
    rows = (f"<tr><th>{escape(key)}</th><td>{escape(_word(value))}</td></tr>\n" for key, value in values.items())
    lines = "".join(rows)
    return f'<div class="table"><table>\n{lines}</table></div>\n' if lines else ""


def _word(value: Any) -> str:
    """A value as it may be written in YAML."""
    return value if isinstance(value, str) else json.dumps(value)


def _details(title: str, body: str) -> str:
    return f"<details><summary>{title}</summary>\n{body}</details>\n"
