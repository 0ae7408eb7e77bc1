"""`balora validate`: everything wrong with a config, at once, and what the run would take."""

from __future__ import annotations

import typer

from balora.cli.train import Config, Overrides


def validate(config: Config, overrides: Overrides = None) -> None:
    """Check CONFIG, its model and its data, and estimate parameters, steps and memory. Nothing is trained or written."""
    from balora.config.run_config import load_run_config
    from balora.estimation.validate import validate as check

    report = check(load_run_config(config, overrides or []))
    for line in report.lines():
        typer.echo(line)
    if report.problems:
        raise typer.Exit(2)
