"""Scatter plots of two-dimensional embeddings, as in figure 3 of the paper: a panel per method and data set, a mark per class.

Shapes: N rows.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from balora.plots.style import save

_CLASS_MARKS = (
    ("#0072B2", "o"), ("#E69F00", "^"), ("#D55E00", "s"), ("#009E73", "D"), ("#CC79A7", "v"), ("#56B4E9", "P"),
)  # fmt: skip
_MAX_POINTS = 2500
"""Points per panel, evenly spaced among all rows. More points hide each other and make the SVG megabytes large."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingPanel:
    """Embedding of the rows by one model, with a caption below it."""

    title: str
    caption: str
    points: np.ndarray
    """Coordinates, N × 2."""
    classes: np.ndarray
    """Index of the true class of each row, N."""


def embedding_figure(
    rows: Sequence[tuple[str, Sequence[EmbeddingPanel | None]]], classes: Sequence[str], path: Path
) -> list[Path]:
    """Draw embeddings in a grid, as a PNG and an SVG file.

    Args:
        rows: Name and panels of each row of the grid; None leaves a cell empty.
        classes: Class names, by index.
        path: File name without suffix.
    """
    columns = max(len(panels) for _, panels in rows)
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.1, wspace=0.02, hspace=0.04)
    figure = Figure((2.75 * columns + 0.4, 3.4 * len(rows) + 0.6), layout=layout)
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, panels) in zip(grid, rows, strict=True):
        for axes, panel in zip(line, [*panels, *[None] * (columns - len(panels))], strict=True):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.spines[:].set_color("#999999")
            if panel is None:
                axes.spines[:].set_visible(False)  # an invisible axes would hide the row's name as well
            else:
                _draw(axes, panel, classes)
        line[0].set_ylabel(name, fontsize=11)
    handles, labels = next(found for axes in grid.flat if (found := axes.get_legend_handles_labels())[0])
    options = {"ncols": len(labels), "frameon": False, "fontsize": 10, "markerscale": 2, "title": "true class"}
    figure.legend(handles, labels, loc="outside lower center", **options)
    return save(figure, path)


def _draw(axes: Axes, panel: EmbeddingPanel, classes: Sequence[str]) -> None:
    total = len(panel.classes)
    drawn = np.unique(np.linspace(0, total - 1, min(total, _MAX_POINTS)).astype(int))
    for number, name in enumerate(classes):
        colour, marker = _CLASS_MARKS[number % len(_CLASS_MARKS)]
        members = drawn[panel.classes[drawn] == number]
        x, y = panel.points[members].T
        axes.scatter(x, y, s=11, color=colour, marker=marker, alpha=0.75, linewidths=0, label=name)
    axes.set_title(panel.title, fontsize=11)
    axes.set_xlabel(panel.caption, fontsize=9)
    axes.set_box_aspect(1)
