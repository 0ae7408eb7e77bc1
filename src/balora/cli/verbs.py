"""The short verbs: train, validate, teacher, export, report and quickstart. The long ones have a file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from balora.cli.audit import finish_audit
from balora.cli.options import Config, Overrides, read_run_config, require_path
from balora.errors import BALoraError, suggest
from balora.logging_control import quiet_libraries

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig


def train(config: Config, overrides: Overrides = None) -> None:
    """Fine-tune a model as CONFIG says. If a run was interrupted, the same command resumes it."""
    run_config = read_run_config(config, overrides)
    quiet_libraries()
    from balora.training.run import run

    if run_config.audit is None or not _is_finished(run_config):
        run(run_config, log=typer.echo)
    else:
        typer.echo(f"The run in {run_config.output} is finished; its audit follows.")
    if run_config.audit is not None:
        from balora.auditing.audit import audit_run

        finish_audit(audit_run(run_config, typer.echo), typer.echo)


def _is_finished(config: RunConfig) -> bool:
    """Return whether the run directory has the finished run of this config: then only its audit may be missing."""
    from balora.checkpoints.run_directory import CONFIG, read_record
    from balora.config.run_config import differences, load_run_config

    stored = Path(config.output) / CONFIG
    finished = stored.is_file() and (read_record(Path(config.output)) or {}).get("status") == "finished"
    return finished and not differences(load_run_config(stored), config)


def validate(config: Config, overrides: Overrides = None) -> None:
    """Check CONFIG, its model and its data, and estimate parameters, steps and memory. Nothing is trained or written."""
    run_config = read_run_config(config, overrides)
    quiet_libraries()
    from balora.estimation.validate import validate as check

    found = check(run_config)
    typer.echo("\n".join(found.lines()))
    if found.problems:
        raise typer.Exit(2)


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

    typer.echo("\n".join(build_teacher_cache(run_config, top_k, typer.echo).lines()))


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished run.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="lora: a plain LoRA for the original model; merged: a plain transformers model.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
) -> None:
    """Write the trained model of RUN in a form that works without balora, and compare it with the trained model."""
    if to not in ("lora", "merged"):
        raise BALoraError(f"--to must be lora or merged, not {to!r}.{suggest(to, ('lora', 'merged'))}")
    require_path(run)
    quiet_libraries()
    from balora.exporting.export import Form
    from balora.exporting.export import export as write

    typer.echo(write(run, to=cast(Form, to), output=output).describe())


def report(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run directory, a comparison's folder, or a folder with several.")
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML file to write. Default: report.html in DIR.", show_default=False)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="Row that differences are computed to. Default: the comparison's own.", show_default=False),
    ] = None,
    samples: Annotated[
        int, typer.Option(min=0, help="Prompts that the pre-trained and tuned models answer. Above 0, all are loaded.")
    ] = 0,
) -> None:
    """Show DIR in one self-contained HTML page: curves, tables, config, samples, provenance and warnings."""
    require_path(folder)
    quiet_libraries()
    from balora.report.page import report as write

    typer.echo(write(folder, output=output, baseline=baseline, samples=samples, say=typer.echo))


def quickstart(output: Annotated[Path, typer.Option(help="Folder to write.")] = Path("quickstart")) -> None:
    """Fine-tune the packaged model with LoRA, PiSSA and BA-LoRA on a small noisy task, and show the measurements."""
    quiet_libraries()
    from balora.experiments.quickstart.pipeline import run_quickstart

    run_quickstart(output, say=typer.echo)
