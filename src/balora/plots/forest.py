"""Forest plots: many differences with their intervals, one line each, around 0."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_COLOURS = {True: "#0072B2", False: "#8a8f94"}
"""Colour of an interval that excludes 0, and of one that contains it."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ForestLine:
    """One difference."""

    label: str
    mean: float
    low: float | None
    high: float | None


def forest_plot(panels: Sequence[tuple[str, str, Sequence[ForestLine]]], path: Path) -> list[Path]:
    """Draw a panel of lines for each (title, axis title, lines), one below the other.

    Intervals that exclude 0 are coloured and drawn with a filled point. Ends outside three times the range of the means are cut
    with an arrow, so that one wide interval does not hide all others.

    Returns:
        The written files: ``path`` with the suffixes ``.png`` and ``.svg``.
    """
    heights = [len(lines) + 2 for _, _, lines in panels]
    figure = Figure(figsize=(8, max(2.5, 0.24 * sum(heights))), layout="constrained")
    FigureCanvasAgg(figure)
    axes_list = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, x_label, lines) in zip(axes_list, panels, strict=True):
        limit = 3 * max((abs(line.mean) for line in lines), default=1.0) or 1.0
        for at, line in enumerate(lines):
            decided = line.low is not None and line.high is not None and (line.low > 0 or line.high < 0)
            colour = _COLOURS[decided]
            if line.low is not None and line.high is not None:
                axes.plot([max(line.low, -limit), min(line.high, limit)], [at, at], color=colour, linewidth=1.4)
                for end, mark in ((line.low, "<"), (line.high, ">")):
                    if abs(end) > limit:
                        axes.plot([limit if mark == ">" else -limit], [at], mark, color=colour, markersize=4)
            axes.plot(
                [line.mean], [at], "o", color=colour, markerfacecolor=colour if decided else "white", markersize=4.5
            )
        axes.axvline(0.0, color="#1a1b1c", linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_yticks(range(len(lines)), [line.label for line in lines], fontsize=7)
        axes.set_ylim(len(lines) - 0.4, -0.6)
        axes.set_title(title, fontsize=9, loc="left")
        axes.set_xlabel(x_label, fontsize=8)
        axes.tick_params(axis="x", labelsize=7)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    written = [path.with_suffix(suffix) for suffix in (".png", ".svg")]
    for file in written:
        figure.savefig(file, dpi=140, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written
