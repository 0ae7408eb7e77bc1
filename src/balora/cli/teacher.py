"""`balora teacher`: a cache of the pre-trained model's outputs on a run's training rows."""

from __future__ import annotations

from typing import Annotated

import typer

from balora.cli.options import Config, Overrides, read_run_config
from balora.logging_control import quiet_libraries


def teacher(
    config: Config,
    overrides: Overrides = None,
    top_k: Annotated[
        int, typer.Option(help="Tokens to store for each position; the probability of the others is stored as one sum.")
    ] = 64,
) -> None:
    """Build the teacher cache that CONFIG names (teacher_cache: DIR), or add the rows that it lacks.

    Runs on the same data can use the same cache, also with different methods and seeds.
    """
    run_config = read_run_config(config, overrides)
    quiet_libraries()
    from balora.teacher.cache_builder import build_teacher_cache

    for line in build_teacher_cache(run_config, top_k, typer.echo).lines():
        typer.echo(line)
