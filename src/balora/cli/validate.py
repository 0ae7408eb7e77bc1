"""`balora validate`: all problems of a config, and an estimate of the run's cost."""

from __future__ import annotations

import typer

from balora.cli.options import Config, Overrides, read_run_config
from balora.logging_control import quiet_libraries


def validate(config: Config, overrides: Overrides = None) -> None:
    """Check CONFIG, its model and its data, and estimate parameters, steps and memory. Nothing is trained or written."""
    run_config = read_run_config(config, overrides)
    quiet_libraries()
    from balora.estimation.validate import validate as check

    report = check(run_config)
    for line in report.lines():
        typer.echo(line)
    if report.problems:
        raise typer.Exit(2)
