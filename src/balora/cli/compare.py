"""`balora compare`: methods × seeds × any key of a config, in one table."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from balora.cli.train import Config, Overrides


class Engine(enum.Enum):
    """Where the runs are made."""

    local = "local"
    ray = "ray"


def compare(
    config: Config,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(help="Names from `balora methods`, with commas; NAME+reg is a method with the regularizers on."),
    ] = "lora,pissa,balora",
    seeds: Annotated[str, typer.Option(help="Whole numbers, with commas.")] = "42,1024,2024",
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="A further key with its values; may be repeated."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="The method that differences are taken to.")] = None,
    scores: Annotated[str | None, typer.Option(help="Scores to show, with commas; all of them by default.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="The comparison's folder; the config's output with -compare by default.")
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Runs side by side; 1 by default, with Ray as many as fit.", show_default=False),
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="local: processes on this machine; ray: a Ray cluster.")
    ] = Engine.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Run CONFIG with every method and seed, and put the results in one table. The same command goes on where it stopped."""
    # Imported here: `balora --help` need not wait for the Trainer.
    from balora.config.yaml_loader import apply_overrides, read_config
    from balora.experiments import compare as comparison
    from balora.experiments.compare.rows import is_finished
    from balora.experiments.compare.tables import plain_lines

    general, variants = comparison.read_variants(listed(methods), overrides or [])
    values = apply_overrides(read_config(config), general)
    axes = comparison.parse_axes(vary or [])
    numbers = comparison.parse_seeds(listed(seeds))
    if dry_run:
        cells, folder = comparison.lay_out(values, variants, numbers, axes=axes, output=output)
        for cell in cells:
            typer.echo(f"{'finished' if is_finished(cell) else 'to run  '}  {cell.title}")
        typer.echo(f"{len(cells)} runs in {folder}")
        return
    made = comparison.compare(
        values,
        variants,
        numbers,
        axes=axes,
        baseline=baseline,
        scores=listed(scores) if scores else None,
        output=output,
        engine=comparison.RayEngine(jobs) if engine is Engine.ray else comparison.LocalEngine(jobs or 1),
        say=typer.echo,
    )
    typer.echo("")
    for line in plain_lines(made):
        typer.echo(line)
    typer.echo(f"\nTables: {made.directory}/table.md (and .csv, .json, .tex)")
    if made.failures:
        typer.echo(f"{len(made.failures)} of {len(made.rows)} runs have no result; the same command tries them again.")
        raise typer.Exit(1)


def listed(text: str) -> list[str]:
    """Words with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]
