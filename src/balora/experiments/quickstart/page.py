"""The quickstart's page: the table, the loss curves, every part with its weight. One file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.plots.html import write
from balora.report.plots import part_plots, task_plot

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
    return write(
        path,
        "quickstart.html.j2",
        rows=rows,
        facts=facts,
        task_svg=task_plot(list(curves.items())),
        parts=part_plots([("balora", curves["balora"])]),
    )
