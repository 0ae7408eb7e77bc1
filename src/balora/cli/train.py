"""`balora train`: one run."""

from __future__ import annotations

import typer

from balora.cli.options import Config, Overrides, read_run_config
from balora.logging_control import quiet_libraries


def train(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune a model as CONFIG says. If a run was interrupted, the same command resumes it."""
    run_config = read_run_config(config, overrides)
    quiet_libraries()
    from balora.training.run import run

    run(run_config, log=typer.echo)
