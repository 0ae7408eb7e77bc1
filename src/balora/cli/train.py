"""`balora train`: one run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="A YAML config.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Such as training.learning_rate=2e-5.", show_default=False),
]


def train(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune a model as CONFIG says. The same command resumes an interrupted run."""
    # Imported here: `balora --help` need not wait for the Trainer.
    from balora.config.run_config import load_run_config
    from balora.training.run import run

    run(load_run_config(config, overrides or []), log=typer.echo)
