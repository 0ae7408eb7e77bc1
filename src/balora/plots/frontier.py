"""Frontier figures: a score against drift, one line for each curve, with intervals over seeds on both axes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from balora.plots.style import LEVEL, label_axes, marks_of, save

_LOG_RANGE = 10.0
"""From this ratio of the largest to the smallest drift on, the axis is logarithmic."""
_FEW_DECADES = 30.0
"""Below this ratio the ticks between the powers of ten have numbers too."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """Point of a curve. The intervals are lower and upper ends, or None."""

    x: float
    y: float
    x_interval: tuple[float, float] | None = None
    y_interval: tuple[float, float] | None = None
    label: str = ""
    """Value of the knob, written beside the point."""


def frontier_figure(
    curves: Mapping[str, Sequence[Mark]],
    path: Path,
    *,
    x_label: str,
    y_label: str,
    title: str,
    x_levels: Sequence[float] = (),
    y_levels: Sequence[float] = (),
    y_falls: bool = False,
) -> list[Path]:
    """Draw the curves and the levels at which they are read.

    Args:
        curves: Points of each curve in the order of its knob.
        path: File name without suffix, for a PNG, an SVG and a PDF file.
        x_label: Name and unit of the drift.
        y_label: Name of the score.
        title: Title.
        x_levels: Drifts to mark by a vertical line.
        y_levels: Scores to mark by a horizontal line.
        y_falls: Whether less is better: the axis then points down, so that better is always up.
    """
    figure = Figure((7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    marks = marks_of(curves)
    for name, points in curves.items():
        colour, marker = marks[name].colour, marks[name].marker
        axes.errorbar(
            [p.x for p in points],
            [p.y for p in points],
            xerr=_reach([p.x for p in points], [p.x_interval for p in points]),
            yerr=_reach([p.y for p in points], [p.y_interval for p in points]),
            color=colour, marker=marker, linestyle=marks[name].dash, label=name,
            markersize=5, linewidth=1.6, elinewidth=0.9, capsize=2,
        )  # fmt: skip
        for point in points:
            axes.annotate(point.label, (point.x, point.y), (4, 4), textcoords="offset points", fontsize=7, color=colour)
    for level in x_levels:
        axes.axvline(level, color=LEVEL, linestyle=":", linewidth=1.0)
    for level in y_levels:
        axes.axhline(level, color=LEVEL, linestyle=":", linewidth=1.0)
    values = [point.x for points in curves.values() for point in points]
    if min(values) > 0 and max(values) / min(values) >= _LOG_RANGE:
        axes.set_xscale("log")
    elif max(values) > 0 and any(0 < value < max(values) / _LOG_RANGE for value in values):
        axes.set_xscale("symlog", linthresh=min(value for value in values if value > 0))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axes.get_xscale() == "log":
        few = max(values) / min(values) < _FEW_DECADES
        axes.xaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:.1g}") if few else NullFormatter())
        axes.tick_params(axis="x", which="minor", labelsize=7)
    if y_falls:
        axes.invert_yaxis()
    label_axes(axes, title, x_label, y_label)
    axes.legend(frameon=False, fontsize=9)
    return save(figure, path, pdf=True)


def _reach(means: Sequence[float], intervals: Sequence[tuple[float, float] | None]) -> list[list[float]]:
    """Return the distances from the means to the ends of the intervals, as matplotlib takes them."""
    pairs = [(mean, mean) if interval is None else interval for mean, interval in zip(means, intervals, strict=True)]
    lows = [max(mean - low, 0.0) for mean, (low, _) in zip(means, pairs, strict=True)]
    return [lows, [max(high - mean, 0.0) for mean, (_, high) in zip(means, pairs, strict=True)]]
