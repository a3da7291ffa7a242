"""Draws the pictures of README and site: ``python docs/tools/pictures.py FOLDER``.

`status` is a golden page of the tests; `watch` and the report are drawn by the code that shows them, of a run that is made up.
Each is an SVG that loads nothing, light or dark as the reader has it.
"""

from __future__ import annotations

import math
import re
import sys
from datetime import UTC, datetime, timedelta
from html import escape
from pathlib import Path
from typing import Any

from finetune_client.commands.common import bar
from finetune_client.commands.listing import lines
from finetune_client.commands.watch import MOST_LOSSES, sparkline
from finetune_client.job import Job
from finetune_trainer.config.run import Run
from finetune_trainer.config.schema import TrainerConfig
from finetune_trainer.output.answers import Answer, Sample
from finetune_trainer.output.report import report
from finetune_trainer.output.summary import RunSummary
from finetune_trainer.tracking.progress import Result

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "tests" / "data" / "pages"

CHARACTER, LINE = 8.4, 20.0
"""Width of a character and height of a line, in pixels at a size of 14."""

STYLE = """
  .ground { fill: #ffffff; stroke: #d9dee2 } .words { fill: #1d2328; font: 14px ui-monospace, Menlo, Consolas, monospace }
  .typed { font-weight: 600 } .button { fill: #d9dee2 }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #12161a; stroke: #343d45 } .words { fill: #e4e9ed } .button { fill: #343d45 }
  }
"""

STEPS, NOW = 48, 30
"""Steps of the run that is made up, and where `watch` sees it."""

REPORT_SIZE = (1000, 1190)
"""Of the report its beginning is shown: numbers, curves, and answers to one prompt."""


def terminal(text: str) -> str:
    """A terminal with a command and what it prints."""
    shown = text.rstrip("\n").split("\n")
    width = max(map(len, shown)) * CHARACTER + 40
    height = len(shown) * LINE + 56
    buttons = "".join(f'<circle class="button" cx="{22 + 18 * index}" cy="20" r="5"/>' for index in range(3))
    words = "\n".join(_line(line, 50 + LINE * index) for index, line in enumerate(shown) if line)
    ground = f'<rect class="ground" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8"/>'
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{STYLE}</style>\n{ground}{buttons}\n{words}\n</svg>\n'


def _line(line: str, top: float) -> str:
    """A line whose characters stand in columns, whatever the reader's font."""
    kind = "words typed" if line.startswith("$ ") else "words"
    return (
        f'<text class="{kind}" x="20" y="{top:.0f}" xml:space="preserve" textLength="{len(line) * CHARACTER:.1f}" '
        f'lengthAdjust="spacingAndGlyphs">{escape(line)}</text>'
    )


def loss(step: int) -> float:
    """The loss of the run that is made up."""
    return 0.4 + 1.5 * math.exp(-step / 9) + 0.06 * math.sin(step * 1.7)


def status_page() -> str:
    """What `finetune status` says of a running job."""
    return (PAGES / "running.txt").read_text(encoding="utf-8").partition("\n[exit code")[0]


def watch_table() -> str:
    """What `finetune watch` shows of three jobs."""
    percent = 100 * NOW / STEPS
    progress = {"display": f"{percent:.0f}%", "percent": percent, "loss": round(loss(NOW), 4)}
    jobs = [
        _job("labels", "Running", 71, 1, {"progress": progress, "ray": {"workers": "2/2"}}),
        _job("orders", "Queued", 40, 1, {"ray": {"workers": "0/2"}}),
        _job("orders-long", "Succeeded", 7900, 2, {"progress": {"display": "100%", "loss": 0.4127}}),
    ]
    table = lines(jobs)
    table.insert(2, f"  {bar(percent)} {sparkline([loss(step) for step in range(NOW - MOST_LOSSES, NOW)])}")
    table.insert(4, "  Queued: couldn't assign flavors to pod set head: insufficient quota for cpu")
    return "\n".join(["$ finetune watch", *table])


def _job(name: str, phase: str, seconds: int, attempt: int, status: dict[str, Any]) -> Job:
    created = (datetime.now(UTC) - timedelta(seconds=seconds, milliseconds=200)).isoformat()
    return Job(
        {"metadata": {"name": name, "creationTimestamp": created}, "status": {"phase": phase, "attempt": attempt} | status}
    )


def report_page() -> str:
    """The report of the run that is made up."""
    steps = [
        {"step": step, "totalSteps": STEPS, "loss": loss(step), "gradNorm": 0.4 + loss(step),
         "learningRate": 2e-3 * (1 - step / STEPS), "tokensPerSecond": 134.0 + step % 3, "memoryBytes": 1.6e9}
        for step in range(1, STEPS + 1)
    ]  # fmt: skip
    held_out: list[dict[str, Any]] = [{"step": step, "evalLoss": loss(step) + 0.05} for step in (12, 24, 36, 48)]
    config = TrainerConfig.model_validate({
        "General": {"base_model": "HuggingFaceTB/SmolLM2-135M-Instruct", "lora_config": {"r": 8, "lora_dropout": 0}},
        "Dataset": {"train_file": "orders.jsonl", "chat_template": "model"},
        "Training": {"max_train_steps": STEPS, "batch_size": 2, "learning_rate": 2e-3},
    })  # fmt: skip
    expected = '{"customer": "Jumira", "item": "bottles", "count": 12, "day": "Monday"}'
    before = '{ "type": "json", "data": { "items": [ { "type": "json", "items": [ { "name": "Jumira", "description": …'
    prompt = "Write the order as JSON.\n\nOn Monday we have to bring Jumira twelve bottles."
    answers = (Answer(text=before, stopped=False), Answer(text=expected, stopped=True))
    return report(
        RunSummary(
            run=Run(config=config, output_dir=Path("orders")),
            result=Result(first_loss=loss(1), train_loss=loss(STEPS), eval_loss=loss(STEPS) + 0.05, perplexity=1.61),
            steps=STEPS,
            total_steps=STEPS,
            seconds=95.0,
            records=[*steps, *held_out],
            samples=(Sample(row="orders.jsonl:3", prompt=prompt, expected=expected, before=answers[0], after=answers[1]),),
            data={"Rows to train on": "130 rows of orders.jsonl"},
            environment={},
        )
    )


def page_picture(page: str) -> str:
    """The beginning of a page of HTML as an SVG."""
    width, height = REPORT_SIZE
    style = page[page.index("<style>") + 7 : page.index("</style>")].replace("body {", ".body {")
    main = page[page.index("<main>") : page.index("</main>") + 7]
    main = re.sub(r" {2,}|(?<=>)\n\s*", " ", main)
    inside = f'<div xmlns="http://www.w3.org/1999/xhtml" class="body">{main}</div>'
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    # The width and height that CSS gives to the page's own pictures are not for the outer one.
    style = style.replace("\nsvg {", "\n.body svg {").replace("\nsvg text {", "\n.body svg text {")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}>\n<style>{escape(style, quote=False)}</style>\n'
        f'<foreignObject width="{width}" height="{height}">{inside}</foreignObject>\n</svg>\n'
    )


def main() -> None:
    """Draw all of them into the folder that is named."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    drawn = {"status": terminal(status_page()), "watch": terminal(watch_table()), "report": page_picture(report_page())}
    for name, picture in drawn.items():
        (folder / f"{name}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
