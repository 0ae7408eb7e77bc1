"""`balora export`: take the result to plain peft or transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer


def export(
    run: Annotated[Path, typer.Argument(help="A finished run's folder.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="lora: a plain LoRA for the original model; merged: a plain transformers model.")
    ],
    output: Annotated[Path, typer.Option(help="The folder to write; new or empty.")],
) -> None:
    """Write RUN's result so that nothing of balora is needed to use it, and compare it with the trained model."""
    from balora.exporting.export import Form
    from balora.exporting.export import export as write

    report = write(run, to=cast(Form, to), output=output)  # another word is refused there
    typer.echo(report.describe())
