"""Line figures with their spread over seeds, as in figures 2, 4 and 6 of the paper.

Every function draws at least one panel, writes a PNG and an SVG file, and returns their paths. ``path`` has no suffix.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balora.plots.style import LEVEL, axes_grid, label_axes, legend_below, marks_of, save

_LINE_STYLES = {"pissa": (0, (4, 2)), "lora": "-", "balora": "-"}
"""PiSSA and BA-LoRA often coincide: PiSSA is dashed and drawn above the broad line of BA-LoRA."""


_POINTS: dict[str, Any] = {"markersize": 5, "linewidth": 1.6, "capsize": 2}


class Estimate(Protocol):
    """Mean over seeds with its standard deviation."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation; None for one seed."""


@dataclasses.dataclass(frozen=True)
class Point:
    """Mean over seeds at one position on the x axis, with its sample standard deviation (None for one seed)."""

    x: float
    mean: float
    deviation: float | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """Coordinate system with one line per series."""

    title: str
    x_label: str
    y_label: str
    series: Mapping[str, Sequence[Point]]
    """Points by method, in the order of the legend."""
    ticks: Sequence[str] | None = None
    """Names of x = 0, 1, 2, … when x has no numbers."""
    level: tuple[str, Estimate] | None = None
    """Name and value of a reference, drawn as a horizontal dashed line."""


def curves_figure(panels: Sequence[Panel], path: Path) -> list[Path]:
    """Draw curves over many steps, each with a band of one standard deviation; panels share one y axis."""
    figure = Figure((5.2 * len(panels), 4.0), layout="constrained")
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(row, panels, strict=True):
        marks = marks_of(panel.series)
        for number, (name, points) in enumerate(panel.series.items()):
            mark = marks[name]
            colour, dash = mark.colour, _LINE_STYLES.get(name, mark.dash)
            width, order = (3.0 if name == "balora" else 1.6), (3 if name == "pissa" else 2) + number / 10
            x = [point.x for point in points]
            means = np.asarray([point.mean for point in points])
            spread = np.asarray([point.deviation or 0.0 for point in points])
            axes.plot(x, means, color=colour, linestyle=dash, linewidth=width, label=name, zorder=order)
            axes.fill_between(x, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
        label_axes(axes, panel.title, panel.x_label, panel.y_label if axes is row[0] else "")
    row[-1].legend(frameon=False, fontsize=9)
    return save(figure, path)


def points_figure(panels: Sequence[Panel], path: Path, columns: int = 2) -> list[Path]:
    """Draw few points per series, joined by lines, with bars of one standard deviation, in rows of ``columns`` panels."""
    figure = Figure((5.2 * columns, 3.9 * -(-len(panels) // columns)), layout="constrained")
    for axes, panel in zip(axes_grid(figure, len(panels), columns), panels, strict=True):
        _draw_points(axes, panel, lambda x, offset: x + 0.06 * offset)
        if panel.ticks is not None:
            axes.set_xticks(range(len(panel.ticks)), panel.ticks)
            axes.set_xlim(-0.4, len(panel.ticks) - 0.6)
        legend_below(axes)
    return save(figure, path)


def rank_figure(panels: Sequence[Panel], path: Path) -> list[Path]:
    """Draw a score over the rank x on a logarithmic axis; a method without a rank is the panel's level."""
    figure = Figure((5.2 * len(panels), 4.3), layout="constrained")
    for axes, panel in zip(axes_grid(figure, len(panels), len(panels)), panels, strict=True):
        _draw_points(axes, panel, lambda x, offset: x * 1.04**offset)
        ranks = sorted({int(point.x) for points in panel.series.values() for point in points})
        axes.set_xscale("log", base=2)
        axes.set_xticks(ranks, [str(rank) for rank in ranks])
        axes.minorticks_off()
        legend_below(axes, gap=0.15)
    return save(figure, path)


def _draw_points(axes: Axes, panel: Panel, shift: Callable[[float, float], float]) -> None:
    """Draw the series and the level. ``shift`` moves x a little per series, so that error bars do not hide each other."""
    marks = marks_of(panel.series)
    for number, (name, points) in enumerate(panel.series.items()):
        mark = marks[name]
        colour, marker = mark.colour, mark.marker
        offset = number - (len(panel.series) - 1) / 2
        x, means = [shift(point.x, offset) for point in points], [point.mean for point in points]
        spread = [point.deviation or 0.0 for point in points]
        axes.errorbar(x, means, spread, color=colour, marker=marker, linestyle=mark.dash, **_POINTS, label=name)
    if panel.level is not None:
        name, level = panel.level
        axes.axhline(level.mean, color=LEVEL, linestyle="--", linewidth=1.4, label=name)
        if level.deviation:
            low, high = level.mean - level.deviation, level.mean + level.deviation
            axes.axhspan(low, high, color=LEVEL, alpha=0.12, linewidth=0)
    label_axes(axes, panel.title, panel.x_label, panel.y_label)
