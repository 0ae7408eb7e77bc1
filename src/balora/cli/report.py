"""`balora report`: one page over runs or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run's folder, a comparison's, or one that holds such.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="The HTML file; report.html in DIR by default.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="What differences are taken to; the comparison's own by default.", show_default=False),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Prompts to answer with the pre-trained and the tuned models; loads them all.")
    ] = 0,
) -> None:
    """Show DIR in one self-contained HTML page: curves, tables, settings, samples, provenance, and what is doubtful."""
    # Imported here: `balora --help` need not wait for it.
    from balora.report.page import report as write

    typer.echo(write(folder, output=output, baseline=baseline, samples=samples, say=typer.echo))
