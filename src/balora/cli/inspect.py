"""`balora inspect`: the rows of a config as the model sees them."""

import shutil
import sys
from pathlib import Path
from typing import Annotated

import typer

from balora.cli.options import Config, Overrides, read_run_config
from balora.cli.screen import say
from balora.errors import BALoraError
from balora.logging_control import quiet_libraries
from balora.terminal import wants_colour


def inspect(
    config: Config,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=0, help="Training rows to show.")] = 3,
    first: Annotated[int, typer.Option(min=1, help="Number of the first row to show.")] = 1,
    html: Annotated[Path | None, typer.Option(help="Write an HTML page, too.", show_default=False)] = None,
) -> None:
    """Show the rows of CONFIG as the model sees them, their lengths, and what is cut, left out, repeated or overlapping."""
    run_config = read_run_config(config, overrides)
    if html is not None and html.is_dir():
        raise BALoraError(f"{html} is a directory. Give the name of the HTML file with --html.")
    quiet_libraries()
    from balora.inspection.inspect import inspect as look
    from balora.inspection.page import write_inspection
    from balora.inspection.text import as_lines

    found = look(run_config, rows=rows, first=first)
    width = shutil.get_terminal_size().columns
    for line in as_lines(found, width=width, colour=wants_colour(sys.stdout), encoding=sys.stdout.encoding):
        typer.echo(line)
    if html is not None:
        html.parent.mkdir(parents=True, exist_ok=True)
        say(f"Wrote {write_inspection(found, html)}")
