"""`balora teacher`: keep on disk what the pre-trained model says about a run's rows."""

from __future__ import annotations

from typing import Annotated

import typer

from balora.cli.train import Config, Overrides


def teacher(
    config: Config,
    overrides: Overrides = None,
    top_k: Annotated[int, typer.Option(help="Tokens kept to a position; the rest is one tail.")] = 64,
) -> None:
    """Build the teacher cache that CONFIG names (teacher_cache: DIR), or add the rows it lacks.

    Runs over the same data share it, whatever their method and seed.
    """
    from balora.config.run_config import load_run_config
    from balora.teacher.cache_builder import build_teacher_cache

    for line in build_teacher_cache(load_run_config(config, overrides or []), top_k, typer.echo).lines():
        typer.echo(line)
