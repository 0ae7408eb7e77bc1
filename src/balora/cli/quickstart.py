"""`balora quickstart`: the whole story on a packaged tiny model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def quickstart(
    output: Annotated[Path, typer.Option(help="The folder to write.")] = Path("quickstart"),
) -> None:
    """Fine-tune the packaged model with LoRA, PiSSA and BA-LoRA on a small noisy task, and show what was measured."""
    from balora.experiments.quickstart.pipeline import run_quickstart

    run_quickstart(output, say=typer.echo)
