"""`balora report`: one HTML page about runs or a comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from balora.cli.options import require_folder
from balora.logging_control import quiet_libraries


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run directory, a comparison's folder, or a folder with several.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write. Default: report.html in DIR.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Row that differences are computed to. Default: the comparison's own.", show_default=False),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Prompts that the pre-trained and tuned models answer. Above 0, all are loaded.")
    ] = 0,
) -> None:
    """Show DIR in one self-contained HTML page: curves, tables, config, samples, provenance and warnings."""
    require_folder(folder)
    quiet_libraries()
    from balora.report.page import report as write

    typer.echo(write(folder, output=output, baseline=baseline, samples=samples, say=typer.echo))
