"""Compare runs: their curves, figures, settings and answers side by side, in one HTML file that needs nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.output import page, plots
from finetune_trainer.output.answers import read_samples
from finetune_trainer.output.settings import settings
from finetune_trainer.output.summary_file import read_summary
from finetune_trainer.tracking.metrics import read_metrics

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from finetune_trainer.output.answers import Sample

MOST_RUNS = len(plots.SERIES)
"""There are so many colours."""

ABSENT = "–"

Record = dict[str, Any]


@dataclass(frozen=True)
class Compared:
    """A run."""

    name: str
    records: list[Record]
    """metrics.jsonl, without what is no number."""
    config: TrainerConfig | None = None
    """None: unknown."""
    samples: tuple[Sample, ...] = ()
    about: Mapping[str, str] = field(default_factory=dict)
    """Data and environment."""
    ended: str = ""
    """Why it ended early; empty: it did not, or that is unknown."""


def read_run(logs: Path, name: str, config: TrainerConfig | None = None) -> Compared:
    """Read the folder ``logs`` of a run.

    Args:
        logs: the folder.
        name: what the run is called.
        config: its configuration if the folder does not have it: there is no report yet.

    Raises:
        OSError: the metrics cannot be read.
    """
    found = read_summary(logs)
    if found is not None:
        config = _config(found.config) or config
    return Compared(
        name,
        [record for record in map(_numbers, read_metrics(logs)) if "step" in record],
        config,
        read_samples(logs),
        {} if found is None else found.data | found.environment,
        "" if found is None else found.ended,
    )


def compare(runs: Sequence[Compared]) -> str:
    """The page, of at most MOST_RUNS runs."""
    marks = [
        f'<span class="run" style="--of: var(--run-{number})">{escape(run.name)}</span>' for number, run in enumerate(runs, 1)
    ]
    differing, same = _split(_settings(runs))
    about, _ = _split(_rows([run.about for run in runs], str))
    legend = f'<ul class="legend">{"".join(f"<li>{mark}</li>" for mark in marks)}</ul>\n'
    sections = [
        page.section("Curves", legend + page.figures(plots.draw_together([run.records for run in runs]))),
        page.section("Result", page.side_by_side(marks, _rows([_figures(run) for run in runs], str))),
        page.section("Settings that differ", page.side_by_side(marks, differing) or "<p>None.</p>\n"),
        page.section("Answers", _answers(runs, marks)),
        page.section("Data and environment, where they differ", page.side_by_side(marks, about)),
        page.section("Settings that are the same", page.details("All of them", page.table({key: same[key][0] for key in same}))),
    ]
    names = ", ".join(run.name for run in runs)
    return page.document(f"Comparison of {len(runs)} runs", names, "".join(sections))


def _config(values: Mapping[str, Any]) -> TrainerConfig | None:
    try:
        return TrainerConfig.model_validate(values)
    except ValueError:  # it is of another version
        return None


def _numbers(record: object) -> Record:
    """What is a finite number in a record; somebody else may have written the file."""
    values = record.items() if isinstance(record, dict) else ()
    return {key: value for key, value in values if isinstance(value, int | float) and math.isfinite(value)}


def _figures(run: Compared) -> dict[str, str]:
    steps = [record for record in run.records if "loss" in record]
    evaluations = [record for record in run.records if "evalLoss" in record]
    found: dict[str, str] = {}
    for title, records, key, form in (
        ("First loss", steps[:1], "loss", ".4f"),
        ("Last training loss", steps[-1:], "loss", ".4f"),
        ("Evaluation loss", evaluations[-1:], "evalLoss", ".4f"),
        ("Lowest evaluation loss", evaluations, "evalLoss", ".4f"),
        ("Perplexity", evaluations[-1:], "perplexity", ".2f"),
        ("Last step", steps[-1:], "step", ".0f"),
        ("Tokens per second", steps[-1:], "tokensPerSecond", ".0f"),
    ):
        values = [record[key] for record in records if key in record]
        found |= {title: format(min(values), form)} if values else {}
    memory = [record["memoryBytes"] for record in steps if "memoryBytes" in record]
    found |= {"Memory of rank 0": f"{max(memory) / plots.GIBIBYTE:.2f} GiB"} if any(memory) else {}
    return found | ({"Ended early": run.ended} if run.ended else {})


def _settings(runs: Sequence[Compared]) -> dict[str, list[str]]:
    """All keys; those that somewhere have other values than their defaults come first."""
    pairs = [({}, {}) if run.config is None else settings(run.config) for run in runs]
    keys = dict.fromkeys(key for differing, _ in pairs for key in differing)
    keys |= dict.fromkeys(key for _, others in pairs for key in others)
    both = [differing | others for differing, others in pairs]
    return {key: [page.word(values[key]) if key in values else ABSENT for values in both] for key in keys}


def _rows(columns: Sequence[Mapping[str, Any]], word: Callable[[Any], str]) -> dict[str, list[str]]:
    keys = dict.fromkeys(key for column in columns for key in column)
    return {key: [word(column[key]) if key in column else ABSENT for column in columns] for key in keys}


def _split(rows: Mapping[str, list[str]]) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """Rows whose cells differ, and the others."""
    differing = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
    return differing, {key: cells for key, cells in rows.items() if key not in differing}


def _answers(runs: Sequence[Compared], marks: Sequence[str]) -> str:
    """The answers after training to each prompt."""
    prompts = dict.fromkeys((sample.prompt, sample.expected) for run in runs for sample in run.samples)
    return "".join(_article(prompt, expected, runs, marks) for prompt, expected in prompts)


def _article(prompt: str, expected: str, runs: Sequence[Compared], marks: Sequence[str]) -> str:
    answers = f"<div><h4>Expected</h4><pre>{escape(expected)}</pre></div>\n"
    for run, mark in zip(runs, marks, strict=True):
        given = next((sample.after for sample in run.samples if (sample.prompt, sample.expected) == (prompt, expected)), None)
        text = "<small>was not asked, or has not answered</small>" if given is None else f"<pre>{escape(given.text)}</pre>"
        answers += f"<div><h4>{mark}</h4>{text}</div>\n"
    return f'<article>\n<h3>Prompt</h3>\n<pre>{escape(prompt)}</pre>\n<div class="answers">\n{answers}</div>\n</article>\n'
