"""`balora export`: the trained model of a run for peft, transformers or serving tools."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from balora.cli.options import require_folder
from balora.errors import BALoraError, suggest
from balora.logging_control import quiet_libraries


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished run.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="lora: a plain LoRA for the original model; merged: a plain transformers model.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
) -> None:
    """Write the trained model of RUN in a form that works without balora, and compare it with the trained model."""
    if to not in ("lora", "merged"):
        raise BALoraError(f"--to must be lora or merged, not {to!r}.{suggest(to, ('lora', 'merged'))}")
    require_folder(run)
    quiet_libraries()
    from balora.exporting.export import Form
    from balora.exporting.export import export as write

    report = write(run, to=cast(Form, to), output=output)
    typer.echo(report.describe())
