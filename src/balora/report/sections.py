"""Runs and comparisons of a directory, read from their files alone. Configs of older versions are accepted."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from balora.checkpoints.run_directory import CONFIG, RECORD, read_record
from balora.config.run_config import HARMLESS, flatten
from balora.config.yaml_loader import parse_yaml
from balora.errors import BALoraError, shown, suggest_path
from balora.experiments.compare.compare import ROWS
from balora.experiments.compare.plan import REGULARIZED, configuration_label
from balora.experiments.compare.rows import Row, Status, read_rows
from balora.files import read_json
from balora.methods import METHODS
from balora.plots.style import TERMS
from balora.training.callbacks import METRICS, read_metrics

_MAX_DEPTH = 3
_TABLE = "table.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Content of a run directory."""

    directory: Path
    label: str
    """Name in tables and legends; the seeds of one configuration have the same label."""
    config: dict[str, Any]
    record: dict[str, Any]
    """Content of ``run.json``."""
    lines: list[dict[str, Any]]
    """Metric lines, each with its step."""
    evaluations: dict[str, dict[str, Any]]
    """Results of `balora evaluate` by task."""
    row: Row

    @property
    def name(self) -> str:
        """Name of the run directory."""
        return self.directory.name

    @property
    def settings(self) -> dict[str, Any]:
        """Config values by dotted key."""
        return flatten(self.config)

    @property
    def task(self) -> str:
        """Task of the config: generation, seq2seq, classification or regression."""
        return str(self.config.get("task", "generation"))

    @property
    def weights(self) -> dict[str, float]:
        """Weight of each regularizer in the config."""
        return _weights(self.config)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Part of the page: a comparison, or the runs in one directory."""

    title: str
    directory: Path
    runs: list[Run]
    rows: list[Row]
    comparison: dict[str, Any] | None
    """Content of the comparison's ``table.json``; None if the runs do not belong to a comparison."""


def read_sections(directory: Path) -> list[Section]:
    """Find the runs and comparisons in a directory and below it.

    Raises:
        BALoraError: The directory does not exist or contains no run, or a file is damaged.
    """
    if directory.is_file():
        raise BALoraError(f"{directory} is a file. Give the directory of a run or a comparison.")
    if not directory.is_dir():
        raise BALoraError(f"The directory {directory} does not exist.{suggest_path(directory)}")
    sections = list(_find_sections(directory, _MAX_DEPTH))
    if not sections:
        raise BALoraError(
            f"{directory} contains no run and no comparison. Give a directory that `balora train` or `balora compare` wrote, or "
            "one that contains such directories."
        )
    return sections


def _find_sections(directory: Path, depth: int) -> Iterator[Section]:
    if _is_run(directory):
        yield _runs_section(directory, [directory])
    elif (directory / ROWS).is_file():
        yield _comparison_section(directory)
    else:
        below = sorted(p for p in directory.iterdir() if p.is_dir() and not p.name.startswith("."))
        runs = [path for path in below if _is_run(path)]
        if runs:
            yield _runs_section(directory, runs)
        for path in below:
            if path not in runs and depth > 0:
                yield from _find_sections(path, depth - 1)


def _is_run(directory: Path) -> bool:
    return (directory / RECORD).is_file() or ((directory / CONFIG).is_file() and (directory / METRICS).is_file())


def _comparison_section(directory: Path) -> Section:
    try:
        rows = read_rows(directory / ROWS)
        about = json.loads((directory / _TABLE).read_text(encoding="utf-8")) if (directory / _TABLE).is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise BALoraError(
            f"{directory} is damaged ({type(error).__name__}: {error}). Run its `balora compare` again: finished runs are kept."
        ) from error
    runs = [
        dataclasses.replace(_read_run(path), label=configuration_label(row.variant, row.axes), row=row)
        for row in rows
        if (path := directory / "runs" / row.run).is_dir()
    ]
    return Section(title=directory.name, directory=directory, runs=runs, rows=rows, comparison=about)


def _runs_section(directory: Path, run_directories: list[Path]) -> Section:
    """Group runs that differ only in their seed. A group is named after its method, or after its first run if methods repeat."""
    groups: dict[str, list[Run]] = {}
    for run in map(_read_run, run_directories):
        settings = {k: v for k, v in run.settings.items() if k not in (*HARMLESS, "seed")}
        groups.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    methods = [members[0].label for members in groups.values()]
    runs = []
    for members in groups.values():
        first = members[0]
        label = first.label if methods.count(first.label) == 1 else first.name
        rows = [dataclasses.replace(run.row, variant=label) for run in members]
        runs += [dataclasses.replace(run, label=label, row=row) for run, row in zip(members, rows, strict=True)]
    rows = [run.row for run in runs]
    return Section(title=directory.name, directory=directory, runs=runs, rows=rows, comparison=None)


def _read_run(directory: Path) -> Run:
    config, record = _read_config(directory / CONFIG), read_record(directory) or {}
    method = str((config.get("method") or {}).get("name", "unknown"))
    regularized = any(_weights(config).values())
    added = regularized and method in METHODS and not METHODS[method].regularized
    label = f"{method}{REGULARIZED}" if added else method
    status = record.get("status", "unknown")
    row_status: Status = status if status in ("finished", "failed") else "missing"
    reason = record.get("error") or f"It is not finished (status: {status})."
    run, seed = directory.name, int(config.get("seed", 0))
    row = Row.from_record(
        record, row_status, reason, run=run, variant=label, method=method, regularized=regularized, axes={}, seed=seed
    )
    lines = [line for line in read_metrics(directory / METRICS) if isinstance(line, dict) and "step" in line]
    results = _read_evaluations(directory / "evaluation")
    return Run(
        directory=directory, label=label, config=config, record=record, lines=lines, evaluations=results, row=row
    )


def _weights(config: dict[str, Any]) -> dict[str, float]:
    section = config.get("regularization")
    return {term: float(section.get(term) or 0.0) if isinstance(section, dict) else 0.0 for term in TERMS}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise BALoraError(f"{path} is damaged: {error}. Restore it, or move its run out of this directory.") from error
    values = values if isinstance(values, dict) else {}
    wrong = [key for key in ("method", "data", "training") if not isinstance(values.get(key) or {}, dict)]
    wrong += [] if isinstance(values.get("seed", 0), int) else ["seed"]
    if wrong:
        raise BALoraError(
            f"{path} is damaged: {wrong[0]} cannot be {shown(values[wrong[0]])}. Restore it, or move its run out of this directory."
        )
    return values


def _read_evaluations(directory: Path) -> dict[str, dict[str, Any]]:
    results = {path.stem: read_json(path, "Delete it and evaluate again.") for path in sorted(directory.glob("*.json"))}
    return {task: result for task, result in results.items() if isinstance(result.get("scores"), dict)}
