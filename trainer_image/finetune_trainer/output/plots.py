"""The curves of a run as SVG, to stand within an HTML page: text is text, and colours are those of the page."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Record = dict[str, Any]
    Points = tuple[list[float], list[float]]

SIZE = (5.6, 2.7)
"""Inches; the page scales it."""

MARGINS = (0.13, 0.17, 0.85, 0.79)
"""Left, bottom, width and height of the plot, as shares of the whole."""

TICKS = 5
"""Most numbers at an axis; each costs more than the curve itself."""

POINTS = 600
"""Most points of a curve: more cannot be distinguished on a screen."""

COLOURS = {"#010101": "currentColor", "#020202": "var(--line)", "#030303": "var(--mark)", "#040404": "var(--rule)"}
"""Colours for matplotlib → CSS values of the page, which differ for light and dark."""
TEXT, LINE, MARK, RULE = COLOURS

STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "finetune",
    "font.size": 9,
    "text.color": TEXT,
    "axes.edgecolor": RULE,
    "axes.labelcolor": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "xtick.labelcolor": TEXT,
    "ytick.major.size": 0,
    "ytick.labelcolor": TEXT,
    "legend.frameon": False,
    "savefig.transparent": True,
}
"""Settings of matplotlib."""

GIBIBYTE = 2**30


def draw(records: list[Record]) -> dict[str, str]:
    """Draw what is on record of a run; a title → an SVG element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "evalLoss" in record]
    resumed = [record["step"] for record in records if "event" in record]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        plots = {"Loss per token": _losses(figure, steps, evaluations, resumed)}
        for title, key, scale in (
            ("Norm of the gradients", "gradNorm", 1),
            ("Learning rate", "learningRate", 1),
            ("Tokens per second, all workers", "tokensPerSecond", 1),
            ("Highest memory use of rank 0 so far, GiB", "memoryBytes", GIBIBYTE),
        ):
            axes = _axes(figure, resumed)
            points = _points(steps, key, scale)
            _line(axes, points, LINE)
            axes.set_ylim(0, 1.08 * max(points[1], default=0) or 1)
            plots[title] = _svg(figure)
    return plots


def _losses(figure: Figure, steps: list[Record], evaluations: list[Record], resumed: list[int]) -> str:
    axes = _axes(figure, resumed)
    _line(axes, _points(steps, "loss"), LINE, label="training")
    if evaluations:
        axes.plot(*_points(evaluations, "evalLoss"), "o-", color=MARK, markersize=4, linewidth=1.2, label="evaluation")
        axes.legend(loc="upper right")
    return _svg(figure)


def _axes(figure: Figure, resumed: list[int]) -> Axes:
    """An empty plot over the steps, with a line where the run went on from a checkpoint."""
    from matplotlib.ticker import MaxNLocator

    figure.clear()
    axes = figure.add_axes(MARGINS)  # to measure the text instead would take twice as long
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(TICKS))
    for step in sorted(set(resumed)):
        axes.axvline(step + 0.5, color=TEXT, linewidth=0.8, linestyle=":")
    return axes


def _line(axes: Axes, points: Points, colour: str, **options: Any) -> None:
    few = len(points[0]) <= 2
    axes.plot(*points, color=colour, linewidth=1.4, marker="o" if few else None, markersize=4, **options)


def _points(records: list[Record], key: str, scale: float = 1) -> Points:
    """Steps and values; of many records some, the first and the last among them."""
    found = [(float(record["step"]), record[key] / scale) for record in records if record.get(key) is not None]
    chosen = found[:: math.ceil(len(found) / POINTS) or 1]
    chosen += found[-1:] if found[-1:] != chosen[-1:] else []
    return [step for step, _ in chosen], [value for _, value in chosen]


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    return re.sub("|".join(COLOURS), lambda found: COLOURS[found[0]], text)
