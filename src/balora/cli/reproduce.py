"""`balora reproduce`: a table or figure of the paper, by name."""

import enum
from pathlib import Path
from typing import Annotated

import typer

from balora.cli.options import Engine, EngineOption, Jobs, Seeds, check_judge, listed
from balora.errors import BALoraError, suggest
from balora.logging_control import quiet_libraries


class Scale(enum.Enum):
    """Scale of an experiment."""

    small = "small"
    paper = "paper"


def reproduce(
    name: Annotated[
        str, typer.Argument(help="Name of the experiment, such as table4; `list` prints all names.", show_default=False)
    ],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the config of every run.", show_default=False),
    ] = None,
    scale: Annotated[
        Scale, typer.Option(help="small: offline, takes minutes; paper: the models and data of the paper.")
    ] = Scale.small,
    seeds: Seeds = "42,1024,2024",
    output: Annotated[Path | None, typer.Option(help="Folder of the results. Default: results/NAME-SCALE.")] = None,
    shared: Annotated[Path, typer.Option(help="Folder with the data and models of the small scale.")] = Path(
        "../shared"
    ),
    recipes: Annotated[Path, typer.Option(help="Folder with the configs of the paper scale.")] = Path("recipes"),
    jobs: Jobs = None,
    engine: EngineOption = Engine.local,
    judge_url: Annotated[
        str | None, typer.Option(help="Judge of MT-Bench (table1, table10): base URL of an OpenAI-compatible server.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(help="Name of the judge on that server.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the runs, their cost and what is missing, and stop.")
    ] = False,
) -> None:
    """Run one of the paper's experiments and write its table or figure. Run it again to continue after a stop."""
    check_judge(judge_url, judge_model)
    from balora.experiments import compare as comparison
    from balora.experiments import reproduce as experiments
    from balora.experiments.reproduce.experiment import TEXTS

    if name == "list":
        width = max(map(len, TEXTS))
        for known, texts in TEXTS.items():
            typer.echo(f"{known:{width}} {texts['title']} ({texts['source']})")
        return
    if name not in TEXTS:
        raise BALoraError(
            f"There is no experiment {name!r}.{suggest(name, TEXTS)} The experiments are {', '.join(TEXTS)}."
        )
    experiment = experiments.EXPERIMENTS[name]
    judge = {"base_url": judge_url, "model": judge_model} if judge_url and judge_model else None
    request = experiments.Request(
        experiment=experiment,
        scale=scale.value,
        output=output or Path("results") / f"{name}-{scale.value}",
        paths=experiments.Paths(shared=shared, recipes=recipes, judge=judge),
        seeds=comparison.parse_seeds(listed(seeds)),
        overrides=overrides or [],
    )
    if dry_run:
        typer.echo("\n".join(experiments.dry_run(request)))
        return
    if experiment.measures_time and jobs != 1:
        typer.echo(
            f"{name} measures time, so its runs go one after the other{' and --jobs is ignored' if jobs else ''}."
        )
        jobs = 1
    quiet_libraries()
    executor = comparison.RayEngine(jobs) if engine is Engine.ray else comparison.LocalEngine(jobs or 1)
    typer.echo(f"\nPage: {experiments.reproduce(request, executor, say=typer.echo)}")
