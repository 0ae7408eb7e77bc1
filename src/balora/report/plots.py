"""Curves as SVG text, to be set into a page. Colours are Okabe and Ito's, which colour-blind readers can tell apart."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

COLOURS = {"lora": "#0072B2", "pissa": "#E69F00", "balora": "#009E73"}
# PiSSA and BA-LoRA often run side by side: the one dashed and on top, the other broad beneath.
_STYLES: dict[str, dict[str, Any]] = {
    "lora": {"linewidth": 1.8},
    "pissa": {"linewidth": 1.6, "linestyle": (0, (3, 2)), "zorder": 4},
    "balora": {"linewidth": 3.2, "zorder": 3},
}
Lines = Sequence[Mapping[str, Any]]


def task_plot(curves: Mapping[str, Lines]) -> Markup:
    """Task loss over steps, one line per method."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for method, lines in curves.items():
        steps, values = _series(lines, "task")
        axes.plot(steps, values, color=COLOURS.get(method), label=method, **_STYLES.get(method, {}))
    _label(axes, "step", "task loss (nats per target token)")
    axes.legend(frameon=False)
    return _svg(figure)


def parts_plot(lines: Lines) -> Markup:
    """Each regularizer: its raw value above, its scheduled weight below."""
    names = ("consistency", "diversity", "spectral")
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axes = figure.subplots(2, len(names), sharex=True, height_ratios=(2, 1))
    for column, name in enumerate(names):
        for row, key in enumerate((name, f"{name}_weight")):
            steps, values = _series(lines, key)
            axes[row, column].plot(steps, values, color=COLOURS["balora"], linewidth=1.6)
            _label(axes[row, column], "step" if row else "", "weight" if row and not column else "")
        axes[0, column].set_title(name, fontsize=10)
    axes[0, 0].set_ylabel("raw value", fontsize=9)
    return _svg(figure)


def _series(lines: Lines, key: str) -> tuple[list[int], list[float]]:
    found = [(line["step"], line[key]) for line in lines if key in line]
    return [step for step, _ in found], [value for _, value in found]


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=9)
    axes.set_ylabel(y, fontsize=9)
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)


def _svg(figure: Figure) -> Markup:
    buffer = io.StringIO()
    FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    text = buffer.getvalue()
    return Markup(text[text.index("<svg") :])  # our own drawing, no user's text in it
