"""Colours, axes and files of all figures.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; marker shapes stay distinct in grey.
"""

import itertools
from collections.abc import Iterable
from pathlib import Path

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Mark = tuple[str, str]
"""Colour and marker shape."""
MARKS: dict[str, Mark] = {"lora": ("#0072B2", "o"), "pissa": ("#E69F00", "s"), "balora": ("#009E73", "^")}
OTHERS: tuple[Mark, ...] = (("#CC79A7", "D"), ("#56B4E9", "v"), ("#D55E00", "P"))
LEVEL = "#444444"
"""Colour of reference lines."""


def marks_of(names: Iterable[str]) -> dict[str, Mark]:
    """Choose a colour and a marker for each name; LoRA, PiSSA and BA-LoRA look the same in every figure.

    Example:
        >>> marks_of(["pissa", "other"])
        {'pissa': ('#E69F00', 's'), 'other': ('#CC79A7', 'D')}
    """
    spare = itertools.cycle(OTHERS)
    return {name: MARKS.get(name) or next(spare) for name in names}


def axes_grid(figure: Figure, count: int, columns: int) -> list[Axes]:
    """Lay out ``count`` axes in rows of ``columns``; the rest of the last row stays empty."""
    grid = figure.subplots(-(-count // columns), columns, squeeze=False).flatten()
    for axes in grid[count:]:
        axes.set_visible(False)
    return list(grid[:count])


def label_axes(axes: Axes, title: str, x: str, y: str, size: int = 10) -> None:
    """Set the title and the axis labels; titles are one point larger than ``size``, tick labels one point smaller."""
    axes.set_title(title, fontsize=size + 1)
    axes.set_xlabel(x, fontsize=size)
    axes.set_ylabel(y, fontsize=size)
    axes.tick_params(labelsize=size - 1)
    axes.spines[["top", "right"]].set_visible(False)


def legend_below(axes: Axes, gap: float = 0.24) -> None:
    """Put the legend below the axes, where it hides no data; ``gap`` is a fraction of the height of the axes."""
    axes.legend(frameon=False, fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -gap))


def save(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and SVG beside ``path``, which has no suffix. The same data give the same bytes."""
    written = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with matplotlib.rc_context({"svg.hashsalt": "balora"}):
        for file in written:
            figure.savefig(file, dpi=160, metadata={"Date": None} if file.suffix == ".svg" else None)
    return written
