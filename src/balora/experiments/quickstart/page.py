"""The quickstart's page: the table, the loss curves, every part with its weight. One file, no network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.plots.html import write_page as write_html
from balora.plots.inline_svg import curve_figure, regularizer_figures

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
    return write_html(
        path,
        "quickstart.html.j2",
        package="balora.experiments.quickstart",
        rows=rows,
        facts=facts,
        task_loss=curve_figure(
            list(curves.items()), "task", "task loss", y_label="task loss (nats per target token)", size=(7.2, 3.2)
        ),
        parts=regularizer_figures([("balora", curves["balora"])]),
    )
