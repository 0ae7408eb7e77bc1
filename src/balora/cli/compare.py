"""`balora compare`: methods × seeds × values of any config key, in one table."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from balora.cli.options import Config, Engine, EngineOption, Jobs, Overrides, Seeds, completed, listed
from balora.config.yaml_loader import apply_overrides, read_config
from balora.errors import BALoraError, suggest
from balora.terminal import printable, wrap

if TYPE_CHECKING:
    from balora.experiments.compare import Comparison


def compare(
    config: Config,
    overrides: Overrides = None,
    methods: Annotated[
        str,
        typer.Option(
            help="Names from `balora methods`, separated by commas. NAME+reg is the method NAME with regularizers, NAME+anchor "
            "with anchors."
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
    frontier: Annotated[
        str | None,
        typer.Option(
            metavar="drift",
            help="Draw a task score against drift, one curve for each method.",
            rich_help_panel="Frontier",
        ),
    ] = None,
    knob: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE",
            help="Key to vary along a curve, such as anchor.weight, anchor.budget, regularization.consistency, "
            "training.learning_rate or export.scale. Can be repeated. Default: anchor.weight and export.scale.",
            rich_help_panel="Frontier",
        ),
    ] = None,
    drift_score: Annotated[
        str, typer.Option(help="Score that measures the drift.", rich_help_panel="Frontier")
    ] = "anchor_drift",
    at_drift: Annotated[
        str | None, typer.Option(help="Drifts to read scores at, separated by commas.", rich_help_panel="Frontier")
    ] = None,
    at_score: Annotated[
        str | None, typer.Option(help="Scores to read drifts at, separated by commas.", rich_help_panel="Frontier")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List the runs and stop.")] = False,
) -> None:
    """Run CONFIG with every method and seed, and put the results in one table. Run it again to continue after a stop."""
    written = read_config(config)
    from balora.experiments import compare as comparison

    general, variants = comparison.read_variants(listed(methods), overrides or [])
    values, _ = completed(apply_overrides(written, general))
    axes = comparison.parse_axes(vary or [])
    numbers = comparison.parse_seeds(listed(seeds))
    levels = {"at_drift": _levels("--at-drift", at_drift), "at_score": _levels("--at-score", at_score)}
    if frontier is None:
        given = {"--knob": knob, "--at-drift": at_drift, "--at-score": at_score}
        if wrong := next((name for name, value in given.items() if value), None):
            raise BALoraError(f"{wrong} is for a frontier: add --frontier drift.")
    else:
        if frontier != "drift":
            raise BALoraError(f"--frontier is drift, not {frontier!r}.{suggest(frontier, ['drift'])}")
        if vary:
            raise BALoraError("--vary makes a table of all combinations; along a frontier, give the key with --knob.")
        from balora.experiments.compare import frontier as curves

        axes = comparison.parse_axes(knob or [], "--knob") or curves.default_knobs(variants)
        curves.check_knobs(axes)
        variants = curves.frontier_variants(values, variants)
        curves.check_score(values)
    comparison.check_baseline(baseline, variants)
    if dry_run:
        from balora.experiments.compare.rows import is_finished

        cells, folder = comparison.lay_out(
            values, variants, numbers, axes=axes, output=output, one_by_one=frontier is not None
        )
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
        scores=listed(scores) if scores and frontier is None else None,
        output=output,
        engine=comparison.RayEngine(jobs) if engine is Engine.ray else comparison.LocalEngine(jobs or 1),
        say=typer.echo,
        one_by_one=frontier is not None,
    )
    assert result.directory is not None
    _show(result, result.directory)
    if frontier is not None:
        from balora.experiments.compare import frontier_files as files

        wanted = listed(scores)[0] if scores else None
        found = curves.make_frontier(result, variants, axes, score=wanted, drift=drift_score, **levels)
        made = files.write_frontier(found, result, result.directory)
        typer.echo(
            "\n".join(["", *files.plain_lines(found), f"Frontier: {made[-1]} (and .png, .svg, .pdf, .md, .csv, .json)"])
        )
    if result.failures:
        typer.echo(
            f"{len(result.failures)} of {len(result.rows)} runs have no result; the same command tries them again."
        )
        raise typer.Exit(1)


def _show(result: "Comparison", directory: Path) -> None:
    """Print scores, the best, differences and doubts; write the figures."""
    from balora.experiments.compare.best import find_best
    from balora.experiments.compare.figures import DIRECTORY, write_figures
    from balora.experiments.compare.screen import screen_lines
    from balora.report.findings import find_warnings
    from balora.report.sections import read_sections

    best = find_best(result)
    lines = ["", *screen_lines(result, best)]
    if doubts := [doubt for section in read_sections(directory) for doubt in find_warnings(section)]:
        lines += ["", "Before you trust the numbers:", *(wrap(printable(f"- {doubt}")) for doubt in doubts)]
    lines += ["", f"Tables: {directory}/table.md (and .csv, .json, .tex)"]
    if write_figures(result, best, directory):
        lines.append(f"Figures: {directory / DIRECTORY} (.png, .svg, .pdf)")
    typer.echo("\n".join([*lines, f"Report: balora report {shlex.quote(str(directory))}"]))


def _levels(option: str, text: str | None) -> list[float]:
    """Parse the numbers of --at-drift or --at-score."""
    try:
        levels = [float(part) for part in listed(text or "")]
    except ValueError:
        levels = [float("nan")]
    if not all(abs(level) < float("inf") for level in levels):
        raise BALoraError(f"{option} must be numbers separated by commas, such as 0.01,0.03, not {text!r}.")
    if option == "--at-drift" and any(level <= 0 for level in levels):
        raise BALoraError(f"{option} must be drifts above 0, not {text!r}.")
    return levels
