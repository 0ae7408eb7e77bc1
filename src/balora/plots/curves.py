"""Figures 2 and 4's form: panels of lines with their spread over seeds, against a level where there is one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from balora.plots.style import LEVEL, label, legend_below, marks_of, new_figure, save

_STEPS = {"pissa": (0, (4, 2)), "lora": "-", "balora": "-"}
"""PiSSA and BA-LoRA often run on top of each other: the one is dashed, the other broad beneath it."""


@dataclasses.dataclass(frozen=True)
class Line:
    """Means over seeds along x."""

    places: Sequence[float]
    means: Sequence[float]
    deviations: Sequence[float | None]
    """None where there is one seed."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One part of the figure."""

    title: str
    x: str
    y: str
    lines: Mapping[str, Line]
    ticks: Sequence[str] | None = None
    """Names of the places 0, 1, 2, … where x has no numbers."""
    level: tuple[str, float, float | None] | None = None
    """Name, mean and deviation of what the lines are held against."""


def curves_figure(panels: Sequence[Panel], path: Path) -> list[Path]:
    """Curves over many steps, with a band of one standard deviation around each; side by side, on one scale.

    Args:
        panels: At least one.
        path: The file, without its suffix.

    Returns:
        The files written, PNG and SVG.
    """
    figure = new_figure(5.2 * len(panels), 4.0)
    row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    for axes, panel in zip(row, panels, strict=True):
        marks = marks_of(panel.lines)
        for number, (name, line) in enumerate(panel.lines.items()):
            colour = marks[name][0]
            means, spread = np.asarray(line.means), np.asarray([value or 0.0 for value in line.deviations])
            broad = 3.0 if name == "balora" else 1.6
            over = 3 if name == "pissa" else 2
            style = _STEPS.get(name, (0, (1, 1)))
            axes.plot(
                line.places,
                means,
                color=colour,
                linestyle=style,
                linewidth=broad,
                label=name,
                zorder=over + number / 10,
            )
            axes.fill_between(line.places, means - spread, means + spread, color=colour, alpha=0.15, linewidth=0)
        label(axes, panel.title, panel.x, panel.y if axes is row[0] else "")
    row[-1].legend(frameon=False, fontsize=9)
    return save(figure, path)


def points_figure(panels: Sequence[Panel], path: Path, columns: int = 2) -> list[Path]:
    """Points at few places, with bars of one standard deviation, joined by lines; in rows of ``columns`` panels.

    Args:
        panels: At least one.
        path: The file, without its suffix.
        columns: Panels in a row.

    Returns:
        The files written, PNG and SVG.
    """
    rows = -(-len(panels) // columns)
    figure = new_figure(5.2 * columns, 3.9 * rows)
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(places, panels, strict=False):
        _points(axes, panel)
    return save(figure, path)


def _points(axes: Axes, panel: Panel) -> None:
    marks = marks_of(panel.lines)
    for number, (name, line) in enumerate(panel.lines.items()):
        colour, marker = marks[name]
        aside = 0.06 * (number - (len(panel.lines) - 1) / 2)  # so that bars do not hide each other
        axes.errorbar(
            [place + aside for place in line.places],
            line.means,
            yerr=[value or 0.0 for value in line.deviations],
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
    if panel.ticks is not None:
        axes.set_xticks(range(len(panel.ticks)), panel.ticks)
        axes.set_xlim(-0.4, len(panel.ticks) - 0.6)
    label(axes, panel.title, panel.x, panel.y)
    legend_below(axes)
