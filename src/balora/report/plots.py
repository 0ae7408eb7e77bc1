"""Curves and scores as SVG text, to be set into a page. Colours are Okabe and Ito's, which colour-blind readers can tell apart.

Everything else takes the page's text colour, so that a figure is readable in light and dark.
"""

from __future__ import annotations

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

from balora.plots.style import MARKS

PARTS = ("consistency", "diversity", "variance", "spectral")
COLOURS = {name: colour for name, (colour, _) in MARKS.items()}
# PiSSA and BA-LoRA often run side by side: the one dashed and on top, the other broad beneath.
_STYLES: dict[str, dict[str, Any]] = {
    "lora": {"color": COLOURS["lora"], "linewidth": 1.8},
    "pissa": {"color": COLOURS["pissa"], "linewidth": 1.6, "linestyle": (0, (3, 2)), "zorder": 4},
    "balora": {"color": COLOURS["balora"], "linewidth": 3.2, "zorder": 3},
}
_OTHERS = ("#CC79A7", "#56B4E9", "#D55E00", "#0072B2", "#009E73", "#E69F00")
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (4, 1.5, 1, 1.5)))
_WIDTH = 3.9
"""Inches of a small figure: on a narrow screen its text is nearly as large as drawn."""
_INK = "#1a1b1c"
"""Stands for the page's text colour until the drawing is done; no line has it."""
Lines = Sequence[Mapping[str, Any]]
Curves = Sequence[tuple[str, Lines]]
"""Runs with their labels and metric lines. Runs of one label (its seeds) are drawn alike."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """A small figure."""

    name: str
    svg: Markup


def task_plot(curves: Curves, unit: str = "nats per target token") -> Markup:
    """Task loss over steps, one line per run."""
    with _page_colours():
        figure = Figure(figsize=(7.2, 3.2), layout="constrained")
        _draw_curves(figure.add_subplot(), curves, "task", "step", f"task loss ({unit})")
        _legend(figure)
        return _svg(figure)


def curve_panel(curves: Curves, key: str, title: str) -> Panel | None:
    """One logged value over steps; None where no run has it."""
    if not has(curves, key):
        return None
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
        axes = figure.add_subplot()
        _draw_curves(axes, curves, key, "step", "")
        axes.set_title(title, fontsize=10)
        _legend(figure)
        return Panel(title, _svg(figure))


def part_plots(curves: Curves) -> list[Panel]:
    """Each regularizer that some run computed: its raw value above, its scheduled weight below."""
    panels = []
    for name in PARTS:
        active = [(label, lines) for label, lines in curves if has([(label, lines)], name)]
        if not active:
            continue
        with _page_colours():
            figure = Figure(figsize=(_WIDTH, 3.3), layout="constrained")
            raw, weight = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
            styles = _styles([label for label, _ in curves])
            _draw_curves(raw, active, name, "", "raw value", styles)
            _draw_curves(weight, active, f"{name}_weight", "step", "weight", styles)
            weight.set_ylim(0, 1.2 * (weight.dataLim.ymax or 1.0))  # a constant weight is a level line, not a close-up
            raw.set_title(name, fontsize=10)
            _legend(figure)
            panels.append(Panel(name, _svg(figure)))
    return panels


def dot_panel(
    name: str, entries: Sequence[tuple[str, float, float | None, float | None]], *, level: float | None = None
) -> Panel:
    """A number per line of a table, with its interval.

    Args:
        name: What the numbers are.
        entries: Label, number, and the interval's ends or None.
        level: Where to draw a line, such as 0 for differences.
    """
    with _page_colours():
        figure = Figure(figsize=(_WIDTH, 0.75 + 0.3 * len(entries)), layout="constrained")
        axes = figure.add_subplot()
        if level is not None:
            axes.axvline(level, color=_INK, linewidth=0.8, linestyle=(0, (2, 2)))
        for place, (_, value, low, high) in enumerate(entries):
            if low is not None and high is not None:
                axes.plot([low, high], [place, place], color=COLOURS["lora"], linewidth=1.6)
            axes.plot([value], [place], "o", color=COLOURS["lora"], markersize=5)
        axes.set_yticks(range(len(entries)), [label for label, *_ in entries])
        axes.set_ylim(len(entries) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_title(name, fontsize=10)
        _label(axes, "", "")
        return Panel(name, _svg(figure))


def has(curves: Curves, key: str) -> bool:
    """Whether some run logged a finite value by that name."""
    return any(_finite(line.get(key)) for _, lines in curves for line in lines)


def _draw_curves(
    axes: Axes, curves: Curves, key: str, x: str, y: str, styles: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    styles = styles or _styles([label for label, _ in curves])
    seen: set[str] = set()
    for label, lines in curves:
        found = [(line["step"], line[key] if _finite(line[key]) else math.nan) for line in lines if key in line]
        if not found:
            continue
        # A single point would draw no line.
        style = {**styles[label], **({"marker": "o", "markersize": 4} if len(found) == 1 else {})}
        named: dict[str, Any] = {"label": label} if label not in seen else {}
        axes.plot([step for step, _ in found], [value for _, value in found], **named, **style)
        seen.add(label)
    _label(axes, x, y)


def _styles(labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """A colour and a dash for each label; thinner where a label has several runs."""
    several = len(set(labels)) < len(labels)
    spare = itertools.cycle({"color": colour, "linestyle": dash} for dash in _DASHES for colour in _OTHERS)
    styles = {label: _STYLES.get(label) or {"linewidth": 1.6, **next(spare)} for label in dict.fromkeys(labels)}
    return {label: {**style, **({"linewidth": 1.1} if several else {})} for label, style in styles.items()}


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _legend(figure: Figure) -> None:
    """Below the axes, where it hides nothing; a single line needs none."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) < 2:
        return
    longest = max(map(len, labels))
    columns = min(len(labels), 4 if longest < 9 else 3 if longest < 14 else 2 if longest < 26 else 1)
    rows = math.ceil(len(labels) / columns)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height + 0.19 * rows)
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


@contextlib.contextmanager
def _page_colours() -> Iterator[None]:
    keys = ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color")
    clear = {"axes.facecolor": "none", "figure.facecolor": "none"}
    # With a fixed salt the same numbers give the same page.
    with matplotlib.rc_context({**dict.fromkeys(keys, _INK), **clear, "svg.hashsalt": "balora"}):
        yield


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue().replace(_INK, "currentColor")
    return Markup(text[text.index("<svg") :])  # matplotlib escapes the labels
