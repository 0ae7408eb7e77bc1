"""Messages of the command: wrapped between words on a terminal, one line a message anywhere else."""

from __future__ import annotations

import sys

import typer

from balora.terminal import wrap


def say(message: str = "", *, err: bool = False) -> None:
    """Print a message, wrapped to the width of the terminal. A file or pipe gets the lines as they are."""
    stream = sys.stderr if err else sys.stdout
    typer.echo(wrap(message) if stream.isatty() else message, err=err)
