"""Figures as SVG text for the inside of an HTML page.

Axes and texts take the text colour of the page, so that a figure is readable on a light and on a dark background.
"""

import contextlib
import dataclasses
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from balora.plots.style import MARKS, label_axes

TERMS = ("consistency", "diversity", "variance", "spectral")
"""Regularizers in the order of the page."""
_COLOURS = {name: colour for name, (colour, _) in MARKS.items()}
# PiSSA and BA-LoRA often coincide: PiSSA is dashed and drawn above the broad line of BA-LoRA.
_LINES: dict[str, dict[str, Any]] = {
    "lora": {"color": _COLOURS["lora"], "linewidth": 1.8},
    "pissa": {"color": _COLOURS["pissa"], "linewidth": 1.6, "linestyle": (0, (3, 2)), "zorder": 4},
    "balora": {"color": _COLOURS["balora"], "linewidth": 3.2, "zorder": 3},
}
_OTHER_COLOURS = ("#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#009E73", "#E69F00")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
_WIDTH = 3.9
"""Inches of a small figure: on a narrow screen its text is nearly as large as drawn."""
_FONT_SIZE = 9
_TEXT_COLOUR = "#1a1b1c"
"""Placeholder for ``currentColor``, which matplotlib does not know. No line has this colour."""
Curves = Sequence[tuple[str, Sequence[Mapping[str, Any]]]]
"""Label and metric lines of each run. Runs with the same label (the seeds of one configuration) look the same."""


@dataclasses.dataclass(frozen=True)
class InlineFigure:
    """Figure for a page."""

    name: str
    svg: Markup


def curve_figure(
    curves: Curves, key: str, title: str, *, y_label: str = "", size: tuple[float, float] = (_WIDTH, 2.8)
) -> InlineFigure | None:
    """Draw the values ``key`` of the metric lines over the steps; return None when no run logged a finite value.

    The title is drawn when there is no ``y_label``. The size in inches does not include the legend.
    """
    if not _has_values(curves, key):
        return None
    with _page_colours():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _draw_curves(axes, curves, key, _line_styles(curves))
        label_axes(axes, "" if y_label else title, "step", y_label, _FONT_SIZE)
        _add_legend(figure)
        return InlineFigure(title, _to_svg(figure))


def regularizer_figures(curves: Curves) -> list[InlineFigure]:
    """Draw each regularizer that some run computed: its raw value above, its scheduled weight below."""
    figures = []
    styles = _line_styles(curves)
    for name in TERMS:
        active = [(label, lines) for label, lines in curves if _has_values([(label, lines)], name)]
        if not active:
            continue
        with _page_colours():
            figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
            raw, weight = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
            _draw_curves(raw, active, name, styles)
            label_axes(raw, name, "", "raw value", _FONT_SIZE)
            _draw_curves(weight, active, f"{name}_weight", styles)
            label_axes(weight, "", "step", "weight", _FONT_SIZE)
            weight.set_ylim(0, 1.2 * (weight.dataLim.ymax or 1.0))  # from 0: a constant weight must look constant
            _add_legend(figure)
            figures.append(InlineFigure(name, _to_svg(figure)))
    return figures


def interval_figure(
    name: str, entries: Sequence[tuple[str, float, float | None, float | None]], *, level: float | None = None
) -> InlineFigure:
    """Draw one entry per row: its label, its number, and its interval (lower and upper end, or None).

    ``level`` is the position of a vertical reference line, such as 0 for differences.
    """
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.3 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        if level is not None:
            axes.axvline(level, color=_TEXT_COLOUR, linewidth=0.8, linestyle=(0, (2, 2)))
        for row, (_, value, low, high) in enumerate(entries):
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=_COLOURS["lora"], linewidth=1.6)
            axes.plot([value], [row], "o", color=_COLOURS["lora"], markersize=5)
        axes.set_yticks(range(len(entries)), [label for label, *_ in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        label_axes(axes, name, "", "", _FONT_SIZE)
        return InlineFigure(name, _to_svg(figure))


def line_figure(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], title: str, x_label: str, *, log: bool = False
) -> InlineFigure:
    """Draw lines, each with its label, its x and its y values; with ``log`` on a logarithmic scale, without values of 0."""
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for number, (label, xs, ys) in enumerate(curves):
            points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y) and (y > 0 or not log)]
            colour, dash = _OTHER_COLOURS[number % len(_OTHER_COLOURS)], _DASHES[number % len(_DASHES)]
            axes.plot(
                [x for x, _ in points], [y for _, y in points], label=label, color=colour, linestyle=dash, linewidth=1.6
            )
        if log:
            axes.set_yscale("log")
        label_axes(axes, title, x_label, "", _FONT_SIZE)
        _add_legend(figure)
        return InlineFigure(title, _to_svg(figure))


def _has_values(curves: Curves, key: str) -> bool:
    return any(_is_finite(line.get(key)) for _, lines in curves for line in lines)


def _draw_curves(axes: Axes, curves: Curves, key: str, styles: Mapping[str, dict[str, Any]]) -> None:
    seen: set[str] = set()
    for label, lines in curves:
        points = [(line["step"], line[key] if _is_finite(line[key]) else math.nan) for line in lines if key in line]
        if not points:
            continue
        marker: dict[str, Any] = {"marker": "o", "markersize": 4} if len(points) == 1 else {}  # one point makes no line
        legend: dict[str, Any] = {} if label in seen else {"label": label}
        axes.plot([step for step, _ in points], [value for _, value in points], **legend, **styles[label], **marker)
        seen.add(label)


def _line_styles(curves: Curves) -> dict[str, dict[str, Any]]:
    """Choose a colour and a dash for each label; lines are thinner when a label has several runs."""
    labels = [label for label, _ in curves]
    thin = {"linewidth": 1.1} if len(set(labels)) < len(labels) else {}
    spare = itertools.cycle({"color": colour, "linestyle": dash} for dash in _DASHES for colour in _OTHER_COLOURS)
    return {
        label: {**(_LINES.get(label) or {"linewidth": 1.6, **next(spare)}), **thin} for label in dict.fromkeys(labels)
    }


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _add_legend(figure: Figure) -> None:
    """Put a legend below the axes and enlarge the figure by its height; a single line needs no legend."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(map(len, labels))
    columns = min(len(labels), 4 if longest < 9 else 3 if longest < 14 else 2 if longest < 26 else 1)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * math.ceil(len(labels) / columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


@contextlib.contextmanager
def _page_colours() -> Iterator[None]:
    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    clear = {"axes.facecolor": "none", "figure.facecolor": "none"}
    # A fixed salt makes the ids in the SVG, and so the page, reproducible.
    with matplotlib.rc_context({**dict.fromkeys(keys, _TEXT_COLOUR), **clear, "svg.hashsalt": "balora"}):
        yield


def _to_svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().replace(_TEXT_COLOUR, "currentColor")
    return Markup(text[text.index("<svg") :])  # safe: matplotlib escapes the labels
