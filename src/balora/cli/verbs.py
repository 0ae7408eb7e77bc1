"""The short verbs: train, validate, teacher, export, report and quickstart. The long ones have a file each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from balora.cli.audit import finish_audit
from balora.cli.launch import launch, rank
from balora.cli.options import Config, Overrides, read_run_config, require_path
from balora.cli.screen import say
from balora.errors import BALoraError, suggest
from balora.logging_control import quiet_libraries

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig


def train(
    config: Config,
    overrides: Overrides = None,
    nproc: Annotated[
        int, typer.Option(min=1, help="Processes on this machine, one for each GPU, as torchrun starts them.")
    ] = 1,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Show warnings and errors only.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Show every logged step above the bar, too.")
    ] = False,
) -> None:
    """Fine-tune a model as CONFIG says. If a run was interrupted, the same command resumes it."""
    if quiet and verbose:
        raise BALoraError("--quiet and --verbose contradict each other; choose one.")
    further = rank() > 0  # the first process speaks for all
    run_config = read_run_config(config, overrides, quiet=quiet or further)
    if nproc > 1:
        flags = ["--quiet"] * quiet + ["--verbose"] * verbose
        raise typer.Exit(launch(nproc, ["train", *flags, "--", str(config), *(overrides or [])]))
    quiet_libraries(warnings_only=quiet or further, errors_only=further)
    quiet = quiet or further
    from balora.training.run import run

    if run_config.audit is None or not _is_finished(run_config):
        run(run_config, log=say, detail="quiet" if quiet else "verbose" if verbose else "normal", bars=None)
    elif not quiet:
        say(f"The run in {run_config.output} is finished; its audit follows.")
    if run_config.audit is not None and not further:
        from balora.auditing.audit import audit_run

        tell = (lambda line: None) if quiet else say
        finish_audit(audit_run(run_config, tell), tell)


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
        int,
        typer.Option(
            min=1, help="Tokens to store for each position; the probability of the others is stored as one sum."
        ),
    ] = 64,
    anchors: Annotated[
        Path | None,
        typer.Option(
            help="File to write the anchors to that the model writes itself (anchor: generated).", show_default=False
        ),
    ] = None,
) -> None:
    """Build the teacher cache that CONFIG names (teacher_cache: DIR), or add the rows that it lacks.

    Runs on the same data can use the same cache, also with different methods and seeds. With --anchors, the model also writes
    its anchors, which runs read as anchor.text=FILE; without teacher_cache in CONFIG, only these are made. Several processes
    of torchrun divide the work.
    """
    further = rank() > 0  # the first process speaks for all
    run_config = read_run_config(config, overrides, quiet=further)
    quiet_libraries(errors_only=further)
    tell = (lambda line: None) if further else typer.echo
    from balora.training.distributed.joined import joined_processes

    with joined_processes():
        if anchors is not None:
            from balora.training.anchors.anchor_file import write_anchors

            write_anchors(run_config, anchors, tell)
            if run_config.teacher_cache in ("auto", "off"):
                return
        from balora.teacher.cache_builder import build_teacher_cache

        tell("\n".join(build_teacher_cache(run_config, top_k, tell).lines()))


def export(
    run: Annotated[Path, typer.Argument(help="Run directory of a finished run.", show_default=False)],
    to: Annotated[
        str, typer.Option(help="lora: a plain LoRA for the original model; merged: a plain transformers model.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write; it must be new or empty.")],
    scale: Annotated[
        float, typer.Option(help="Part a of the change to export, W + a·ΔW; below 1 less is forgotten and less learnt.")
    ] = 1.0,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Cut a LoRA to this lower rank; the error is printed.", show_default=False)
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16: round what is written; the error is printed.", show_default=False
        ),
    ] = None,
    push: Annotated[
        str | None,
        typer.Option(help="Upload to this repository of the hub, which is private if new.", show_default=False),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="With --push: make a new repository public.")] = False,
) -> None:
    """Write the trained model of RUN in a form that works without balora, and compare it with the trained model."""
    if to not in ("lora", "merged"):
        raise BALoraError(f"--to must be lora or merged, not {to!r}.{suggest(to, ('lora', 'merged'))}")
    require_path(run)
    quiet_libraries()
    from balora.exporting.export import Form
    from balora.exporting.export import export as write
    from balora.exporting.serving import serving_lines

    if public and push is None:
        raise BALoraError("--public is for --push REPO, which is not given.")
    if push is not None:
        from balora.exporting.upload import check_upload

        check_upload(push)
    say(write(run, to=cast(Form, to), output=output, rank=rank, scale=scale, dtype=dtype).describe())
    lines = serving_lines(output, _task_of(run))
    if lines:
        say("\n".join(["Serve it:", *(f"  {line}" for line in lines)]))
    if push is not None:
        from balora.exporting.upload import local_base, upload

        if note := local_base(output):
            say(note)
        say(upload(output, push, public=public))


def _task_of(run: Path) -> str | None:
    """Return the task of a run, or None if its folder does not say."""
    from balora.loading.trained import find_saved

    try:
        return find_saved(run).task
    except (BALoraError, KeyError):
        return None


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
    """Fine-tune the packaged model with LoRA, PiSSA, BA-LoRA and anchors on a small noisy task; show the measurements."""
    quiet_libraries()
    from balora.experiments.quickstart.pipeline import run_quickstart

    run_quickstart(output, say=typer.echo)
