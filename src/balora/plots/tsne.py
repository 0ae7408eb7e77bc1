"""Figure 3's form: maps of what a classifier makes of its rows, one panel per method and condition, a mark per true class.

Shapes: N rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

# Okabe and Ito's colours, which colour-blind readers can tell apart; markers tell them apart in grey.
_STYLES = (
    ("#0072B2", "o"), ("#E69F00", "^"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "v"), ("#56B4E9", "P"),
)  # fmt: skip
_MOST = 2500
"""Points of a panel; of more, evenly spaced ones are drawn, or the SVG would take megabytes and the marks hide each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Map:
    """One panel."""

    title: str
    caption: str
    """Stands below the panel."""
    points: np.ndarray
    """N × 2."""
    truth: np.ndarray
    """N, the number of each point's true class."""


def map_figure(rows: Sequence[tuple[str, Sequence[Map | None]]], classes: Sequence[str], path: Path) -> list[Path]:
    """Draw the panels, as PNG and SVG.

    Args:
        rows: A name and its panels for each row of the figure; None leaves a panel empty.
        classes: Names of the classes, in the order of their numbers.
        path: The file, without its suffix.

    Returns:
        The files written.
    """
    columns = max(len(panels) for _, panels in rows)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.1, wspace=0.02, hspace=0.04)
    figure = Figure(figsize=(2.75 * columns + 0.4, 3.4 * len(rows) + 0.6), layout=layout)
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, panels) in zip(grid, rows, strict=True):
        for axes, panel in zip(line, [*panels, *[None] * (columns - len(panels))], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#999999")
            if panel is None:
                axes.spines[:].set_visible(False)  # the row's name stays
            else:
                _draw(axes, panel, classes)
        line[0].set_ylabel(name, fontsize=11)
    handles, labels = next(found for axes in grid.flat if (found := axes.get_legend_handles_labels())[0])
    legend = figure.legend(
        handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=10, markerscale=2
    )
    legend.set_title("true class")
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    for file in written:
        figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written


def _draw(axes: Axes, panel: Map, classes: Sequence[str]) -> None:
    shown = np.unique(np.linspace(0, len(panel.truth) - 1, min(len(panel.truth), _MOST)).astype(int))
    for number, name in enumerate(classes):
        colour, marker = _STYLES[number % len(_STYLES)]
        own = shown[panel.truth[shown] == number]
        axes.scatter(
            panel.points[own, 0],
            panel.points[own, 1],
            s=11,
            color=colour,
            marker=marker,
            alpha=0.75,
            linewidths=0,
            label=name,
        )
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.caption, fontsize=9)
    axes.set_box_aspect(1)


__all__ = ["Map", "map_figure"]
