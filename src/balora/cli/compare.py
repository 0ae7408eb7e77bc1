"""`balora compare`: methods × seeds × values of any config key, in one table."""

from pathlib import Path
from typing import Annotated

import typer

from balora.cli.options import Config, Engine, EngineOption, Jobs, Overrides, Seeds, completed, listed
from balora.config.yaml_loader import apply_overrides, read_config


def compare(
    config: Config,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names from `balora methods`, separated by commas. NAME+reg is the method NAME with regularizers."
        ),
    ] = "lora,pissa,balora",
    seeds: Seeds = "42,1024,2024",
    vary: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="A config key and the values to compare. Can be repeated."),
    ] = None,
    baseline: Annotated[str | None, typer.Option(help="Method that differences are computed to.")] = None,
    scores: Annotated[str | None, typer.Option(help="Scores to show, separated by commas. Default: all.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder of the comparison. Default: the config's output with -compare added.")
    ] = None,
    jobs: Jobs = None,
    engine: EngineOption = Engine.local,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Run CONFIG with every method and seed, and put the results in one table. Run it again to continue after a stop."""
    written = read_config(config)
    from balora.experiments import compare as comparison

    general, variants = comparison.read_variants(listed(methods), overrides or [])
    values, _ = completed(apply_overrides(written, general))
    axes = comparison.parse_axes(vary or [])
    numbers = comparison.parse_seeds(listed(seeds))
    if dry_run:
        from balora.experiments.compare.rows import is_finished

        cells, folder = comparison.lay_out(values, variants, numbers, axes=axes, output=output)
        for cell in cells:
            typer.echo(f"{'finished' if is_finished(cell) else 'to run  '}  {cell.title}")
        typer.echo(f"{len(cells)} runs in {folder}")
        return
    result = comparison.compare(
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
    from balora.experiments.compare.tables import plain_lines

    typer.echo(
        "\n".join(["", *plain_lines(result), "", f"Tables: {result.directory}/table.md (and .csv, .json, .tex)"])
    )
    if result.failures:
        typer.echo(
            f"{len(result.failures)} of {len(result.rows)} runs have no result; the same command tries them again."
        )
        raise typer.Exit(1)
