"""Figure 5's form: for each model a panel, for each method a row, for each precision a mark."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from balora.plots.style import LEVEL, label, marks_of, new_figure, save

_ASIDE = 0.14


@dataclasses.dataclass(frozen=True)
class Dot:
    """A mean over seeds."""

    mean: float
    deviation: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One model, one score."""

    title: str
    score: str
    rows: Mapping[str, tuple[Dot | None, Dot | None]]
    """By method: as it is, and in 4 bits."""


def dots_figure(panels: Sequence[Panel], path: Path, kinds: tuple[str, str], columns: int = 3) -> list[Path]:
    """Draw the panels in rows, as PNG and SVG.

    Args:
        panels: At least one.
        path: The file, without its suffix.
        kinds: What the filled and the hollow marks are.
        columns: Panels in a row.

    Returns:
        The files written.
    """
    columns = min(columns, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(max(3.6 * columns, 5.2), 2.6 * rows + 0.5)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(places, panels, strict=False):
        _draw(axes, panel)
    filled = Line2D([], [], color=LEVEL, marker="o", linestyle="", label=kinds[0])
    hollow = Line2D([], [], color=LEVEL, marker="o", linestyle="", label=kinds[1], markerfacecolor="white")
    figure.legend(handles=[filled, hollow], loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    marks = marks_of(panel.rows)
    for place, (name, pair) in enumerate(panel.rows.items()):
        colour, marker = marks[name]
        for dot, aside, inside in zip(pair, (-_ASIDE, _ASIDE), (colour, "white"), strict=True):
            if dot is not None:
                axes.errorbar(
                    dot.mean,
                    place + aside,
                    xerr=dot.deviation or 0.0,
                    color=colour,
                    marker=marker,
                    markerfacecolor=inside,
                    markersize=7,
                    capsize=2,
                    linestyle="",
                )
    axes.set_yticks(range(len(panel.rows)), list(panel.rows))
    axes.set_ylim(len(panel.rows) - 0.5, -0.5)
    axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.grid(axis="y", color="#dddddd", linewidth=0.6)
    label(axes, panel.title, panel.score, "")
