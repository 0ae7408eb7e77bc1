"""Scores of a comparison with their spread, and their differences to a baseline: a row per configuration, a panel per score."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from balora.plots.style import LEVEL, axes_grid, label_axes, marks_of, save

_COLUMNS = 3
_ROW_HEIGHT = 0.3
_FRAME_HEIGHT = 1.0
"""Inches of a panel without its rows: title, ticks, axis label."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreRow:
    """One configuration in a panel."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    bold: bool = False
    """True for the best, whose label is bold."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScorePanel:
    """One score, or the differences of one score."""

    title: str
    x_label: str
    rows: Sequence[ScoreRow]
    level: float | None = None
    """Position of a vertical reference line. An interval that contains it has a hollow mark."""


def score_figure(panels: Sequence[ScorePanel], labels: Sequence[str], path: Path) -> list[Path]:
    """Draw the panels and write the figure as PNG, SVG and PDF.

    Args:
        panels: At least one panel.
        labels: All configurations of the comparison, in its order, so that each has the same mark in every figure.
        path: File name without suffix.

    Returns:
        Paths of the files.
    """
    marks = marks_of(labels)
    columns = min(_COLUMNS, len(panels))
    lines = -(-len(panels) // columns)
    height = _FRAME_HEIGHT + _ROW_HEIGHT * max(len(panel.rows) for panel in panels)
    longest = max(len(label) for label in labels)
    figure = Figure((columns * (2.9 + 0.075 * longest), lines * height), layout="constrained")
    for axes, panel in zip(axes_grid(figure, len(panels), columns), panels, strict=True):
        if panel.level is not None:
            axes.axvline(panel.level, color=LEVEL, linewidth=0.8, linestyle=(0, (2, 2)))
        for number, row in enumerate(panel.rows):
            mark = marks[row.label]
            open_ = panel.level is not None and row.low is not None and row.high is not None
            hollow = open_ and row.low <= panel.level <= row.high  # type: ignore[operator]
            if row.low is not None and row.high is not None:
                axes.plot([row.low, row.high], [number, number], color=mark.colour, linewidth=1.6)
            fill = "white" if hollow else mark.colour
            axes.plot([row.value], [number], mark.marker, color=mark.colour, markerfacecolor=fill, markersize=7)
        _label_rows(axes, panel)
    return save(figure, path, pdf=True)


def _label_rows(axes: Axes, panel: ScorePanel) -> None:
    axes.set_yticks(range(len(panel.rows)), [row.label for row in panel.rows])
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    label_axes(axes, panel.title, panel.x_label, "")
    for text, row in zip(axes.get_yticklabels(), panel.rows, strict=True):
        text.set_fontweight("bold" if row.bold else "normal")
