"""What a folder holds: runs and comparisons, read from their files alone. Nothing is loaded, and an old config is no error."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from balora.checkpoints.run_directory import CONFIG, RECORD, read_record
from balora.config.run_config import HARMLESS, flatten
from balora.errors import BALoraError, suggest
from balora.experiments.compare.compare import ROWS
from balora.experiments.compare.plan import shown
from balora.experiments.compare.rows import Row, scores_of
from balora.methods import METHODS
from balora.training.callbacks import METRICS, read_metrics

TERMS = ("consistency", "diversity", "variance", "spectral")
_DEPTH = 3
_TABLE = "table.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run's folder, read."""

    folder: Path
    label: str
    """As the tables and legends call it; the seeds of one configuration share it."""
    config: dict[str, Any]
    """As it was written."""
    record: dict[str, Any]
    lines: list[dict[str, Any]]
    evaluations: dict[str, dict[str, Any]]
    """Results of `balora evaluate` by task."""
    row: Row

    @property
    def name(self) -> str:
        """Of its folder."""
        return self.folder.name

    @property
    def flat(self) -> dict[str, Any]:
        """Its settings by dotted key."""
        return flatten(self.config)

    @property
    def task(self) -> str:
        """generation, seq2seq, classification or regression."""
        return str(self.config.get("task", "generation"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """Runs that belong together: a comparison, or what lies in one folder."""

    title: str
    folder: Path
    runs: list[Run]
    rows: list[Row]
    comparison: dict[str, Any] | None
    """What a comparison says about itself (``table.json``); None for runs that no comparison made."""


def read_sections(folder: Path) -> list[Section]:
    """Find the runs and comparisons in a folder and below it.

    Args:
        folder: A run's, a comparison's, or one that holds such.

    Raises:
        BALoraError: It is not there, or holds neither, or a file is damaged.
    """
    if not folder.is_dir():
        if folder.is_file():
            raise BALoraError(f"{folder} is a file; give the folder of a run or a comparison.")
        siblings = [p.name for p in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise BALoraError(f"There is no folder {folder}.{suggest(folder.name, siblings)}")
    sections = list(_sections(folder, _DEPTH))
    if not sections:
        raise BALoraError(
            f"{folder} holds no run and no comparison. Give the folder that `balora train` or `balora compare` wrote, or one "
            "that holds such folders."
        )
    return sections


def _sections(folder: Path, depth: int) -> Iterator[Section]:
    if _is_run(folder):
        yield _of_runs(folder, [folder])
    elif (folder / ROWS).is_file():
        yield _of_comparison(folder)
    else:
        below = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
        own = [path for path in below if _is_run(path)]
        if own:
            yield _of_runs(folder, own)
        for path in below:
            if path not in own and depth > 0:
                yield from _sections(path, depth - 1)


def _is_run(folder: Path) -> bool:
    return (folder / RECORD).is_file() or ((folder / CONFIG).is_file() and (folder / METRICS).is_file())


def _of_comparison(folder: Path) -> Section:
    lines = (folder / ROWS).read_text().split("\n")  # not splitlines: a name may hold U+2028
    try:
        rows = [Row.from_dict(json.loads(line)) for line in lines if line.strip()]
        about = json.loads((folder / _TABLE).read_text()) if (folder / _TABLE).is_file() else {}
    except (ValueError, KeyError, TypeError) as error:
        raise BALoraError(
            f"{folder} is damaged ({type(error).__name__}: {error}). Run its `balora compare` again: finished runs are kept."
        ) from error
    runs = [
        dataclasses.replace(_read(folder / "runs" / row.run), label=label_of(row), row=row)
        for row in rows
        if (folder / "runs" / row.run).is_dir()
    ]
    return Section(title=folder.name, folder=folder, runs=runs, rows=rows, comparison=about)


def _of_runs(folder: Path, folders: list[Path]) -> Section:
    """Runs that differ in their seed alone share a line; the lines are named by method where that tells them apart."""
    runs = [_read(path) for path in folders]
    kinds: dict[str, list[Run]] = {}
    for run in runs:
        settings = {k: v for k, v in run.flat.items() if k not in (*HARMLESS, "seed")}
        kinds.setdefault(json.dumps(settings, sort_keys=True, default=str), []).append(run)
    methods = [members[0].row.variant for members in kinds.values()]
    named = []
    for members in kinds.values():
        first = members[0]
        label = first.row.variant if methods.count(first.row.variant) == 1 else first.name
        for run in members:
            row = dataclasses.replace(run.row, variant=label)
            named.append(dataclasses.replace(run, label=label, row=row))
    return Section(title=folder.name, folder=folder, runs=named, rows=[run.row for run in named], comparison=None)


def label_of(row: Row) -> str:
    """A line of the table in words."""
    return ", ".join([row.variant, *(f"{key} {shown(value)}" for key, value in row.axes.items())])


def _read(folder: Path) -> Run:
    record = read_record(folder) or {}
    config = _config(folder / CONFIG)
    lines = [line for line in read_metrics(folder / METRICS) if isinstance(line, dict) and "step" in line]
    method = str((config.get("method") or {}).get("name", "unknown"))
    regularized = any(weights(config).values())
    plain = method in METHODS and not METHODS[method].regularized
    variant = f"{method}+reg" if regularized and plain else method
    row = _row(folder.name, variant, method, regularized, int(config.get("seed", 0)), record)
    return Run(
        folder=folder, label=variant, config=config, record=record, lines=lines, evaluations=_evaluations(folder), row=row
    )  # fmt: skip


def _row(name: str, variant: str, method: str, regularized: bool, seed: int, record: dict[str, Any]) -> Row:
    metrics = record.get("metrics") or {}
    status = record.get("status", "unknown")
    done = status == "finished"
    reason = record.get("error") or f"It is not finished (status: {status})."
    return Row(
        run=name,
        variant=variant,
        method=method,
        regularized=regularized,
        axes={},
        seed=seed,
        status="finished" if done else "failed" if status == "failed" else "missing",
        reason=None if done else reason,
        scores=scores_of(metrics) if done else {},
        seconds=None if record.get("resumed") else metrics.get("train_runtime"),
        peak_memory_mib=metrics.get("peak_memory_mib"),
        trainable=(record.get("parameters") or {}).get("trainable"),
        provenance={**(record.get("provenance") or {}), "data_digest": (record.get("data") or {}).get("digest")},
    )


def weights(config: dict[str, Any]) -> dict[str, float]:
    """The weight that a config gives each regularizer."""
    section = config.get("regularization")
    section = section if isinstance(section, dict) else {}
    return {term: float(section.get(term) or 0.0) for term in TERMS}


def _config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text()) if path.is_file() else {}
    except yaml.YAMLError as error:
        raise BALoraError(f"{path} is damaged: {error}. Write it anew, or move its run elsewhere.") from error
    return values if isinstance(values, dict) else {}


def _evaluations(folder: Path) -> dict[str, dict[str, Any]]:
    found = {}
    for path in sorted((folder / "evaluation").glob("*.json")):
        try:
            result = json.loads(path.read_text())
        except ValueError as error:
            raise BALoraError(f"{path} is damaged ({error}). Delete it and evaluate again.") from error
        if isinstance(result, dict) and isinstance(result.get("scores"), dict):
            found[path.stem] = result
    return found
