"""Figure 6's form: a score over the rank, one line per method, and a level for a method that has no rank."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes

from balora.plots.style import LEVEL, label, legend_below, marks_of, new_figure, save


@dataclasses.dataclass(frozen=True)
class Point:
    """A mean over seeds at one rank."""

    rank: int
    mean: float
    deviation: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One study's part of the figure."""

    title: str
    score: str
    lines: Mapping[str, Sequence[Point]]
    level: tuple[str, float, float | None] | None = None
    """Name, mean and deviation of the method without a rank."""


def rank_figure(panels: Sequence[Panel], path: Path) -> list[Path]:
    """Draw the panels side by side, as PNG and SVG.

    Args:
        panels: At least one.
        path: The file, without its suffix.

    Returns:
        The files written.
    """
    figure = new_figure(5.2 * len(panels), 4.3)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    return save(figure, path)


def _draw(axes: Axes, panel: Panel) -> None:
    ranks = sorted({point.rank for points in panel.lines.values() for point in points})
    marks = marks_of(panel.lines)
    for number, (name, points) in enumerate(panel.lines.items()):
        colour, marker = marks[name]
        # A little aside, so that error bars of different methods do not hide each other.
        places = [point.rank * 1.04 ** (number - (len(panel.lines) - 1) / 2) for point in points]
        axes.errorbar(
            places,
            [point.mean for point in points],
            yerr=[point.deviation or 0.0 for point in points],
            color=colour,
            marker=marker,
            markersize=5,
            linewidth=1.6,
            capsize=2,
            label=name,
        )
    if panel.level is not None:
        name, mean, deviation = panel.level
        axes.axhline(mean, color=LEVEL, linestyle="--", linewidth=1.4, label=name)
        if deviation:
            axes.axhspan(mean - deviation, mean + deviation, color=LEVEL, alpha=0.12, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ranks, [str(rank) for rank in ranks])
    axes.minorticks_off()
    label(axes, panel.title, "rank", panel.score)
    legend_below(axes, gap=0.15)
