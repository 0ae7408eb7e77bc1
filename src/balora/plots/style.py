"""What the figures share: colours that colour-blind readers tell apart, marks that differ in grey, how a file is written."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

Mark = tuple[str, str]
"""A colour of Okabe and Ito's, and the shape of a marker."""
MARKS: dict[str, Mark] = {"lora": ("#0072B2", "o"), "pissa": ("#E69F00", "s"), "balora": ("#009E73", "^")}
OTHERS: tuple[Mark, ...] = (("#CC79A7", "D"), ("#56B4E9", "v"), ("#D55E00", "P"))
LEVEL = "#444444"
"""Of a level that lines are held against."""


def marks_of(names: Iterable[str]) -> dict[str, Mark]:
    """A colour and a marker for each name; LoRA, PiSSA and BA-LoRA have theirs in every figure.

    Example:
        >>> marks_of(["pissa", "other"])
        {'pissa': ('#E69F00', 's'), 'other': ('#CC79A7', 'D')}
    """
    spare = itertools.cycle(OTHERS)
    return {name: MARKS.get(name) or next(spare) for name in names}


def new_figure(width: float, height: float) -> Figure:
    """A figure of a size in inches, laid out so that no texts overlap."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def label(axes: Axes, title: str, x: str, y: str) -> None:
    """Title and axes in sizes that are read at a page's width."""
    axes.set_title(title, fontsize=11)
    axes.set_xlabel(x, fontsize=10)
    axes.set_ylabel(y, fontsize=10)
    axes.tick_params(labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, gap: float = 0.24) -> None:
    """The names of what is drawn, under the axes, where they hide nothing.

    Args:
        axes: Drawn upon.
        gap: What tick labels and the axis's name take, as a share of the axes' height.
    """
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -gap))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG; the same numbers give the same files.

    Args:
        figure: To be written.
        path: The file, without its suffix.

    Returns:
        The files written.
    """
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with matplotlib.rc_context({"svg.hashsalt": "balora"}):
        for file in written:
            figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written
