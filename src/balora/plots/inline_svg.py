"""Figures as SVG text for the inside of an HTML page.

Axes and texts take the text colour of the page, so that a figure is readable on a light and on a dark background.
"""

import contextlib
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import matplotlib
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from balora.plots.style import TERM_COLOURS, TERMS, label_axes, marks_of, method_of

# PiSSA and BA-LoRA often coincide: PiSSA is dashed and drawn above the broad line of BA-LoRA.
_LINES: dict[str, dict[str, Any]] = {
    "lora": {"linewidth": 1.8},
    "pissa": {"linewidth": 1.6, "linestyle": (0, (3, 2)), "zorder": 4},
    "balora": {"linewidth": 3.2, "zorder": 3},
}
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
    """Draw the values ``key`` of the metric lines over the steps, for every run that logged at least two finite values.

    The title is drawn when there is no ``y_label``. The size in inches does not include the legend. Without such a run the
    result is None: one value is no curve.
    """
    if not _has_curve(curves, key):
        return None
    with _page_colours():
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _draw_curves(axes, curves, key, _line_styles(curves))
        label_axes(axes, "" if y_label else title, "step", y_label, _FONT_SIZE)
        _add_legend(figure)
        return InlineFigure(title, _to_svg(figure))


def regularizer_figures(curves: Curves) -> list[InlineFigure]:
    """Draw each regularizer that some run computed at least twice: its raw value above, its scheduled weight below.

    A figure has the colour of its regularizer in its title, and in its line if all runs have the same label.
    """
    figures = []
    styles = _line_styles(curves)
    for name in TERMS:
        active = [(label, lines) for label, lines in curves if _has_curve([(label, lines)], name)]
        if not active:
            continue
        if len({label for label, _ in curves}) == 1:
            styles = {label: {**style, "color": TERM_COLOURS[name]} for label, style in styles.items()}
        with _page_colours():
            figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
            raw, weight = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
            _draw_curves(raw, active, name, styles)
            label_axes(raw, name, "", "raw value", _FONT_SIZE)
            raw.title.set_color(TERM_COLOURS[name])
            raw.title.set_fontweight("bold")
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

    ``level`` is the position of a vertical reference line, such as 0 for differences. An interval that contains it is drawn with
    a hollow point. A label that begins with a method has the method's mark; every other label is drawn in the colour of the text.
    """
    marks = marks_of(label for label, *_ in entries)
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.3 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        if level is not None:
            axes.axvline(level, color=_TEXT_COLOUR, linewidth=0.8, linestyle=(0, (2, 2)))
        for row, (label, value, low, high) in enumerate(entries):
            known = method_of(label) is not None
            colour, marker = (marks[label].colour, marks[label].marker) if known else (_TEXT_COLOUR, "o")
            fill = colour
            if low is not None and high is not None:
                axes.plot([low, high], [row, row], color=colour, linewidth=1.6)
                fill = "none" if level is not None and low <= level <= high else colour
            axes.plot([value], [row], marker, color=colour, markerfacecolor=fill, markersize=6)
        axes.set_yticks(range(len(entries)), [label for label, *_ in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        label_axes(axes, name, "", "", _FONT_SIZE)
        return InlineFigure(name, _to_svg(figure))


def line_figure(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]], title: str, x_label: str, *, log: bool = False
) -> InlineFigure:
    """Draw lines, each with its label, its x and its y values; with ``log`` on a logarithmic scale, without values of 0.

    The lines are no methods, so they have the colour of the text and differ in dash and strength.
    """
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        for number, (label, xs, ys) in enumerate(curves):
            points = [(x, y) for x, y in zip(xs, ys, strict=True) if math.isfinite(y) and (y > 0 or not log)]
            look: dict[str, Any] = {"color": _TEXT_COLOUR, "alpha": 1 - 0.15 * (number % 4), "linewidth": 1.6}
            look["linestyle"] = _DASHES[number % len(_DASHES)]
            axes.plot([x for x, _ in points], [y for _, y in points], label=label, **look)
        if log:
            axes.set_yscale("log")
        label_axes(axes, title, x_label, "", _FONT_SIZE)
        _add_legend(figure)
        return InlineFigure(title, _to_svg(figure))


def single_values(curves: Curves, key: str) -> list[tuple[str, int, float]]:
    """List label, step and value of the runs that logged exactly one finite value of ``key``, which is no curve."""
    found = []
    for label, lines in curves:
        values = [(line["step"], line[key]) for line in lines if _is_finite(line.get(key))]
        found += [(label, *values[0])] if len(values) == 1 else []
    return found


def _has_curve(curves: Curves, key: str) -> bool:
    return any(sum(_is_finite(line.get(key)) for line in lines) > 1 for _, lines in curves)


def _draw_curves(axes: Axes, curves: Curves, key: str, styles: Mapping[str, dict[str, Any]]) -> None:
    seen: set[str] = set()
    for label, lines in curves:
        points = [(line["step"], line[key] if _is_finite(line[key]) else math.nan) for line in lines if key in line]
        if sum(math.isfinite(value) for _, value in points) < 2:
            continue
        legend: dict[str, Any] = {} if label in seen else {"label": label}
        axes.plot([step for step, _ in points], [value for _, value in points], **legend, **styles[label])
        seen.add(label)


def _line_styles(curves: Curves) -> dict[str, dict[str, Any]]:
    """Choose a colour and a dash for each label; lines are thinner when a label has several runs."""
    labels = [label for label, _ in curves]
    thin = {"linewidth": 1.1} if len(set(labels)) < len(labels) else {}
    return {
        label: {"linewidth": 1.6, "color": mark.colour, "linestyle": mark.dash, **_LINES.get(label, {}), **thin}
        for label, mark in marks_of(labels).items()
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
