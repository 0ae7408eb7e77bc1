"""The quickstart's page: the table, the loss curves, every part with its weight. One file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from balora.report.plots import parts_plot, task_plot

Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def write_page(path: Path, rows: Sequence[Any], curves: Curves, facts: Mapping[str, Any]) -> Path:
    """Write the page.

    Args:
        path: The HTML file.
        rows: Measured rows, the pre-trained model first.
        curves: Metric lines by method.
        facts: Seed, noise and provenance.

    Returns:
        ``path``.
    """
    source = resources.files("balora.report").joinpath("quickstart.html.j2").read_text()
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(source)
    html = template.render(rows=rows, facts=facts, task_svg=task_plot(curves), parts_svg=parts_plot(curves["balora"]))
    path.write_text(html)
    return path
