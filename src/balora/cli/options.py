"""Options that several verbs share, and the parsing of lists."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from balora.cli.screen import say
from balora.errors import BALoraError, hide_passwords, raise_all, suggest_path

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig

_COLUMNS = ("prompt", "response", "messages", "text", "label", "score")
Config = Annotated[Path, typer.Argument(help="Path of a YAML config.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...", help="Changes to the config, such as training.learning_rate=2e-5.", show_default=False
    ),
]
Seeds = Annotated[str, typer.Option(help="Random seeds: whole numbers, separated by commas.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1, help="Runs at the same time. Default: 1; with Ray, as many as the cluster can take.", show_default=False
    ),
]


class Engine(enum.Enum):
    """Engine that executes the runs of a comparison."""

    local = "local"
    ray = "ray"


EngineOption = Annotated[Engine, typer.Option(help="local: processes on this machine; ray: a Ray cluster.")]


def read_run_config(config: Path, overrides: list[str] | None, *, quiet: bool = False) -> RunConfig:
    """Read and check the config of a run, without importing anything heavier than pydantic.

    Columns and the task that the config leaves out are read off the data, where these leave no doubt.
    """
    from balora.config.run_config import RunConfig
    from balora.config.yaml_loader import apply_overrides, read_config

    said: list[str] = []
    values: dict[str, Any] | None = None
    try:
        values = apply_overrides(read_config(config), overrides or [])
        values, said = completed(values, quiet=quiet)
        found = RunConfig.from_dict(values, source=str(config))
        if found.audit is not None:
            from balora.auditing.options import AuditOptions

            AuditOptions.from_mapping(found.audit)
        return found
    except BALoraError as error:
        if values is None:  # it could not be read
            raise
        from balora.config.foreign_keys import program_of
        from balora.loading.source import missing_files

        hints = [line for line in said if "not recognised" in line]
        program = program_of(values)
        whose = f", which looks like a config of {program}," if program else ""
        raise_all([*error.problems, *hints, *missing_files(values)], f"{config}{whose} cannot be used")
        raise


def completed(values: dict[str, Any], *, quiet: bool = False) -> tuple[dict[str, Any], list[str]]:
    """Fill in the columns and the task that a config leaves out (`balora.data.conversations.completion.complete`), and say so."""
    data = values.get("data")
    if isinstance(data, dict) and any(data.get(key) is not None for key in _COLUMNS):
        return values, []  # the usual case, which needs no import
    from balora.data.conversations.completion import complete

    values, said = complete(values)
    for line in said:
        if not quiet and "not recognised" not in line:
            say(line, err=True)
    return values, said


def require_path(path: Path) -> None:
    """Raise `BALoraError` if a folder does not exist, before anything is imported to read it."""
    if not path.exists():
        raise BALoraError(f"There is no folder {path}.{suggest_path(path)}")


def listed(text: str) -> list[str]:
    """Split a text at its commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_judge(url: str | None, model: str | None) -> None:
    """Raise `BALoraError` if only one of the judge's URL and name is given, or if the URL has a password."""
    if (url is None) != (model is None):
        raise BALoraError("The judge needs a URL and a model: give --judge-url and --judge-model together.")
    if url is not None and hide_passwords(url) != url:
        raise BALoraError(
            "--judge-url has a password or token in it, and the results keep the URL. Put the key into an environment variable: "
            "OPENAI_API_KEY, or for evaluate the one that --judge-key-variable names."
        )
