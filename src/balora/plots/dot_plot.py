"""Dot plots as in figure 5 of the paper: a panel per model, a row per method, a mark per precision."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from balora.plots.curves import Estimate
from balora.plots.style import LEVEL, axes_grid, label_axes, marks_of, save

_OFFSET = 0.14
"""Distance of each mark from the middle of its row."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DotPanel:
    """Score of one model."""

    title: str
    x_label: str
    rows: Mapping[str, tuple[Estimate | None, Estimate | None]]
    """Scores by method, for the filled and the hollow mark; None draws no mark."""


def dots_figure(panels: Sequence[DotPanel], path: Path, kinds: tuple[str, str], columns: int = 3) -> list[Path]:
    """Draw means over seeds as dots, with bars of one standard deviation, in rows of ``columns`` panels.

    Args:
        panels: At least one panel.
        path: File name without suffix, for a PNG and an SVG file.
        kinds: Legend of the filled and of the hollow marks.
    """
    columns = min(columns, len(panels))
    size = max(3.6 * columns, 5.2), 2.6 * -(-len(panels) // columns) + 0.5
    figure = Figure(size, layout="constrained")
    for axes, panel in zip(axes_grid(figure, len(panels), columns), panels, strict=True):
        _draw(axes, panel)
    filled = Line2D([], [], color=LEVEL, marker="o", linestyle="", label=kinds[0])
    hollow = Line2D([], [], color=LEVEL, marker="o", linestyle="", label=kinds[1], markerfacecolor="white")
    figure.legend(handles=[filled, hollow], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def _draw(axes: Axes, panel: DotPanel) -> None:
    marks = marks_of(panel.rows)
    for row, (name, pair) in enumerate(panel.rows.items()):
        colour, marker = marks[name].colour, marks[name].marker
        for estimate, y, fill in zip(pair, (row - _OFFSET, row + _OFFSET), (colour, "white"), strict=True):
            if estimate is not None:
                mark: Any = {"marker": marker, "markerfacecolor": fill, "markersize": 7, "linestyle": ""}
                axes.errorbar(estimate.mean, y, xerr=estimate.deviation or 0.0, color=colour, capsize=2, **mark)
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    label_axes(axes, panel.title, panel.x_label, "")
