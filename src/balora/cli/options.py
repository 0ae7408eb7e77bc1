"""Options that several verbs share, and the parsing of lists."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from balora.errors import BALoraError, suggest_path

if TYPE_CHECKING:
    from balora.config.run_config import RunConfig

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


def read_run_config(config: Path, overrides: list[str] | None) -> RunConfig:
    """Read and check the config of a run, without importing anything heavier than pydantic."""
    from balora.config.run_config import load_run_config

    found = load_run_config(config, overrides or [])
    if found.audit is not None:
        from balora.auditing.options import AuditOptions

        AuditOptions.from_mapping(found.audit)
    return found


def require_path(path: Path) -> None:
    """Raise `BALoraError` if a folder does not exist, before anything is imported to read it."""
    if not path.exists():
        raise BALoraError(f"There is no folder {path}.{suggest_path(path)}")


def listed(text: str) -> list[str]:
    """Split a text at its commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def check_judge(url: str | None, model: str | None) -> None:
    """Raise `BALoraError` if only one of the judge's URL and name is given."""
    if (url is None) != (model is None):
        raise BALoraError("The judge needs a URL and a model: give --judge-url and --judge-model together.")
