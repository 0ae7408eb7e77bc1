"""`balora reproduce`: a table or figure of the paper, by name."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from balora.cli.compare import Engine, listed
from balora.errors import BALoraError, suggest


class Scale(enum.Enum):
    """How large."""

    small = "small"
    paper = "paper"


def judge_options(url: str | None, model: str | None) -> dict[str, str] | None:
    """Who rates MT-Bench answers.

    Raises:
        BALoraError: Only one of the two is there.
    """
    if url is None or model is None:
        if url != model:
            raise BALoraError("A judge is a URL and a model: give --judge-url and --judge-model together.")
        return None
    return {"base_url": url, "model": model}


def reproduce(
    name: Annotated[
        str, typer.Argument(help="Such as table4; `balora reproduce list` names them.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to every run's config.", show_default=False),
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="small: offline, minutes; paper: the paper's models and data.")
    ] = Scale.small,
    seeds: Annotated[str, typer.Option(help="Whole numbers, with commas.")] = "42,1024,2024",
    output: Annotated[Path | None, typer.Option(help="The folder; results/NAME-SCALE by default.")] = None,
    shared: Annotated[Path, typer.Option(help="The folder with the small scale's data and models.")] = Path(
        "../shared"
    ),
    recipes: Annotated[Path, typer.Option(help="The folder with the paper's settings.")] = Path("recipes"),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs side by side; 1 by default.", show_default=False)
    ] = None,
    engine: Annotated[
        Engine, typer.Option(help="local: processes on this machine; ray: a Ray cluster.")
    ] = Engine.local,
    judge_url: Annotated[
        str | None, typer.Option(help="MT-Bench's judge (table1, table10): an OpenAI-compatible base URL.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="The judge's name there.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be run, what it takes, what is missing.")
    ] = False,
) -> None:
    """Run one of the paper's experiments and write its table or figure. The same command goes on where it stopped."""
    from balora.experiments import compare as comparison
    from balora.experiments import reproduce as experiments

    if name == "list":
        width = max(map(len, experiments.EXPERIMENTS))
        for known in experiments.EXPERIMENTS.values():
            typer.echo(f"{known.name:{width}} {known.title} ({known.source})")
        return
    if name not in experiments.EXPERIMENTS:
        known_names = ", ".join(experiments.EXPERIMENTS)
        raise BALoraError(
            f"There is no experiment {name!r}.{suggest(name, experiments.EXPERIMENTS)} There are {known_names}."
        )
    experiment = experiments.EXPERIMENTS[name]
    judge = judge_options(judge_url, judge_model)
    request = experiments.Request(
        experiment=experiment,
        scale=scale.value,
        output=output or Path("results") / f"{name}-{scale.value}",
        paths=experiments.Paths(shared=shared, recipes=recipes, judge=judge),
        seeds=comparison.parse_seeds(listed(seeds)),
        overrides=overrides or [],
    )
    if dry_run:
        for line in experiments.dry_run(request):
            typer.echo(line)
        return
    if experiment.measures_time and jobs != 1:
        typer.echo(f"{name} measures time: its runs go one after the other{', not as --jobs says' if jobs else ''}.")
        jobs = 1
    maker = comparison.RayEngine(jobs) if engine is Engine.ray else comparison.LocalEngine(jobs or 1)
    typer.echo(f"\nPage: {experiments.reproduce(request, maker, say=typer.echo)}")
