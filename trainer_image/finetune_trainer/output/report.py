"""The report of a run: one HTML file that needs nothing else. Whatever comes from outside is escaped."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.run import REPORT_FILE
from finetune_trainer.files import write_atomically
from finetune_trainer.output import page, plots
from finetune_trainer.output.answers import ANSWER_TOKENS
from finetune_trainer.output.settings import settings
from finetune_trainer.output.summary import NOT_MEASURED, summarise_interrupted
from finetune_trainer.output.summary_file import write_summary

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
    differing, others = settings(summary.run.config)
    sections = [
        page.section("Why it ended early", f"<pre>{escape(summary.ended)}</pre>\n" if summary.ended else ""),
        page.section("Curves", page.figures(plots.draw(summary.records))),
        page.section("Answers before and after", "".join(map(_sample, summary.samples))),
        page.section("Prompt", _prompt(summary)),
        page.section("History", page.items(_resumed(record) for record in summary.resumed)),
        page.section("Warnings", page.items(escape(text) for text in summary.warnings)),
        page.section("Result", page.table(summary.measured)),
        page.section("Data", page.table(summary.data)),
        page.section("Configuration", page.table(differing) + page.details("Keys that have their defaults", page.table(others))),
        page.section("Environment", page.table(summary.environment)),
    ]
    title = f"Finetuning of {summary.run.config.general.base_model}"
    return page.document(title, _lead(summary), f"{_figures(summary.measured)}{''.join(sections)}")


def write_interrupted(run: Run, progress: Progress) -> None:
    """Write the report and the summary of a run that was stopped or has failed, unless it has not trained.

    Raises:
        OSError: the logs cannot be read, or the report not written.
    """
    summary = summarise_interrupted(run, progress)
    if summary is not None:
        write_atomically(run.output_dir / REPORT_FILE, report(summary).encode())
        write_summary(run.logs, summary)


def _lead(summary: RunSummary) -> str:
    named = f"Run {summary.run.run_name}: " if summary.run.run_name else ""
    workers = f"; workers: {summary.environment['Workers']}" if summary.environment else ""
    ended = f"; ended after step {summary.steps} of {summary.total_steps}" if summary.ended else ""
    return f"{named}{summary.method}; {summary.data['Rows to train on']}{workers}{ended}"


def _figures(measured: Mapping[str, str]) -> str:
    shown = [(title, value) for title, value in list(measured.items())[:SHOWN_FIRST] if value != NOT_MEASURED]
    cells = (f"<div><dt>{escape(title)}</dt><dd>{escape(value)}</dd></div>\n" for title, value in shown)
    return f'<dl class="figures">\n{"".join(cells)}</dl>\n'


def _prompt(summary: RunSummary) -> str:
    """The prompt that was trained, of one row."""
    if summary.taught is None or not summary.taught.text:
        return ""
    ids = ", ".join(map(str, summary.taught.ids))
    return f"<pre>{escape(summary.taught.text)}</pre>\n{page.details('Its token ids', f'<pre>{ids}</pre>')}"


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
