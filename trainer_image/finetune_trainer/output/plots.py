"""The curves of a run as SVG, to stand within an HTML page: text is text, and colours are those of the page."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

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

SERIES = {f"#05050{number}": f"var(--run-{number})" for number in range(1, 9)}
"""The same for the lines of several runs."""

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

MEASURED = (
    ("Norm of the gradients", "gradNorm", 1),
    ("Learning rate", "learningRate", 1),
    ("Tokens per second, all workers", "tokensPerSecond", 1),
    ("Highest memory use of rank 0 so far, GiB", "memoryBytes", GIBIBYTE),
)
"""Plots besides that of the loss, each with a key of the records and its unit."""

LOSSES = ("loss", "evalLoss")
COMPARED = (("Loss per token", "loss", 1), ("Loss on the evaluation rows", "evalLoss", 1), *MEASURED)
"""Plots of several runs."""


def draw(records: list[Record]) -> dict[str, str]:
    """Draw what is on record of a run; a title → an SVG element."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    steps = [record for record in records if "loss" in record]
    evaluations = [record for record in records if "evalLoss" in record]
    resumed = [record["step"] for record in records if "event" in record]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = _axes(figure, resumed)  # one for all plots: to make it takes longer than to draw it
        (line,) = axes.plot([], [], color=LINE, linewidth=1.4, markersize=4, label="training")
        _set(line, _points(steps, "loss"))
        plots = {"Loss per token": _losses(axes, evaluations)}
        for title, key, scale in MEASURED:
            points = _points(steps, key, scale)
            _set(line, points)
            axes.set_ylim(0, 1.08 * max(points[1], default=0) or 1)
            plots[title] = _svg(figure)
    return plots


def draw_together(runs: Sequence[list[Record]]) -> dict[str, str]:
    """Draw what is on record of at most as many runs as there are colours; a title → an SVG element.

    The first run has the first colour. What no run has on record is left out.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    drawn = {}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=SIZE)
        axes = _axes(figure, [])
        lines = [axes.plot([], [], color=colour, linewidth=1.4, markersize=4)[0] for colour in list(SERIES)[: len(runs)]]
        for title, key, scale in COMPARED:
            points = [_points(records, key, scale) for records in runs]
            values = [value for _, found in points for value in found]
            for line, found in zip(lines, points, strict=True):
                _set(line, found)
            if key not in LOSSES:
                axes.set_ylim(0, 1.08 * max(values, default=0) or 1)
            if values:
                drawn[title] = _svg(figure)
    return drawn


def _axes(figure: Figure, resumed: list[int]) -> Axes:
    """An empty plot over the steps, with a line where the run went on from a checkpoint."""
    from matplotlib.ticker import MaxNLocator

    axes = figure.add_axes(MARGINS)  # to measure the text instead would take twice as long
    axes.set_xlabel("step")
    axes.xaxis.set_major_locator(MaxNLocator(TICKS, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(TICKS))
    for step in sorted(set(resumed)):
        axes.axvline(step + 0.5, color=TEXT, linewidth=0.8, linestyle=":")
    return axes


def _losses(axes: Axes, evaluations: list[Record]) -> str:
    """The plot of the losses; what it has besides the line is removed afterwards."""
    figure: Any = axes.figure
    if not evaluations:
        return _svg(figure)
    points = _points(evaluations, "evalLoss")
    (evaluation,) = axes.plot(*points, "o-", color=MARK, markersize=4, linewidth=1.2, label="evaluation")
    legend = axes.legend(loc="upper right")
    drawn = _svg(figure)
    evaluation.remove()
    legend.remove()
    return drawn


def _set(line: Line2D, points: Points) -> None:
    """Have a line go through these points, and the plot show them."""
    line.set_data(*points)
    line.set_marker("o" if len(points[0]) <= 2 else "")
    axes: Any = line.axes
    axes.relim()
    axes.autoscale_view()


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
    values = COLOURS | SERIES
    return re.sub("|".join(values), lambda found: values[found[0]], text)
