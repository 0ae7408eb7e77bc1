"""`balora quickstart`: fine-tuning from start to report on a packaged tiny model, offline."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from balora.logging_control import quiet_libraries


def quickstart(
    output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("quickstart"),
) -> None:
    """Fine-tune the packaged model with LoRA, PiSSA and BA-LoRA on a small noisy task, and show the measurements."""
    quiet_libraries()
    from balora.experiments.quickstart.pipeline import run_quickstart

    run_quickstart(output, say=typer.echo)
