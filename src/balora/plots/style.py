"""Colours, axes and files of all figures.

The main colours are Okabe and Ito's, which colour-blind readers can tell apart; marker shapes stay distinct in grey. A method has
the same colour in every figure and on every page, whatever else is drawn there. Its variants (``lora+reg``, ``lora, method.rank
8``) have the method's colour, and differ in marker and dash.
"""

import dataclasses
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from balora.methods.registry import METHODS


@dataclasses.dataclass(frozen=True)
class Mark:
    """Look of one label: colour, marker shape, and dash of its lines."""

    colour: str
    marker: str
    dash: Any = "-"


_MAIN = {"lora": ("#0072B2", "o"), "pissa": ("#E69F00", "s"), "balora": ("#009E73", "^")}
_COLOURS = ("#CC79A7", "#56B4E9", "#D55E00", "#7A5195", "#8C564B", "#7F7F7F", "#9A8F00")
_MARKERS = ("D", "v", "P", "X", "p", "h", "<", ">", "*", "d")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
METHOD_MARKS: dict[str, Mark] = {name: Mark(*mark) for name, mark in _MAIN.items()}
"""Mark of every method. The three methods of the paper have a colour of their own; the others share seven, and no two of them
have the same colour and marker."""
for _number, _name in enumerate(name for name in METHODS if name not in _MAIN):
    METHOD_MARKS[_name] = Mark(_COLOURS[_number % len(_COLOURS)], _MARKERS[_number % len(_MARKERS)])
TERMS = ("consistency", "diversity", "variance", "spectral")
"""Regularizers in the order of a page."""
TERM_COLOURS = {"consistency": "#2F6DB5", "diversity": "#B4508C", "variance": "#8A7A00", "spectral": "#C2571A"}
"""Colour of each regularizer, readable on a light and on a dark page."""
LEVEL = "#444444"
"""Colour of reference lines."""
_METHOD = re.compile(r"[\w-]+")


def method_of(label: str) -> str | None:
    """Return the method that a label begins with; None if it begins with none.

    Example:
        >>> method_of("lora+reg, method.rank 8"), method_of("ours: C+D")
        ('lora', None)
    """
    found = _METHOD.match(label)
    return found[0] if found and found[0] in METHOD_MARKS else None


def marks_of(labels: Iterable[str]) -> dict[str, Mark]:
    """Choose a mark for each label: that of its method; further labels of the method have another marker and dash.

    Labels that begin with no method have the colours of the methods outside the paper, in the order of the labels.

    Example:
        >>> marks_of(["pissa", "pissa+reg"])["pissa+reg"]
        Mark(colour='#E69F00', marker='D', dash=(0, (5, 1.5)))
    """
    marks: dict[str, Mark] = {}
    used: dict[str | None, int] = {}
    for label in dict.fromkeys(labels):
        method = method_of(label)
        number = used[method] = used.get(method, -1) + 1
        if method is None:
            marks[label] = Mark(_COLOURS[number % len(_COLOURS)], _MARKERS[number % len(_MARKERS)])
        elif number == 0:
            marks[label] = METHOD_MARKS[method]
        else:
            marker, dash = _MARKERS[(number - 1) % len(_MARKERS)], _DASHES[number % len(_DASHES)]
            marks[label] = Mark(METHOD_MARKS[method].colour, marker, dash)
    return marks


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


_UNDATED: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}


def save(figure: Figure, path: Path, *, pdf: bool = False) -> list[Path]:
    """Write a figure as PNG and SVG, and as PDF if wanted, beside ``path``. The same data give the same bytes.

    ``path`` has no suffix; a point in its name belongs to the name.
    """
    written = [path.parent / f"{path.name}{suffix}" for suffix in (".png", ".svg", *([".pdf"] if pdf else []))]
    # Type 42: text in the PDF stays text, which journals ask for.
    with matplotlib.rc_context({"svg.hashsalt": "balora", "pdf.fonttype": 42}):
        for file in written:
            figure.savefig(file, dpi=160, metadata=_UNDATED.get(file.suffix))
    return written
