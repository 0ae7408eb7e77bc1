"""Rows of results: one JSON object per line, with machine, versions and commit. Plots and tables read them."""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.checkpoints.provenance import provenance

RESULTS = Path(__file__).parent / "results"


class Rows:
    """Collects the rows of one script and writes them, replacing those of its last run.

    Args:
        name: Name of the file in ``results/``.
        output: Another directory, to try a script.
    """

    def __init__(self, name: str, output: Path | None = None) -> None:
        self.path = (output or RESULTS) / f"{name}.jsonl"
        self.provenance = provenance()
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> dict[str, Any]:
        """Add a row; a dataclass in it becomes a mapping. A failure is a row with another ``status``."""
        complete = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in row.items()}
        complete = {"benchmark": self.path.stem, "status": "ok", **complete, **self.provenance}
        self.rows.append(complete)
        print(self.path.stem, *(f"{k} {_short(v)}" for k, v in row.items() if not isinstance(v, list)), flush=True)
        self.write()
        return complete

    def write(self) -> None:
        """Write to a temporary file and rename it, so that a stopped run leaves complete rows."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(temporary, self.path)


def read(name: str, directory: Path | None = None) -> list[dict[str, Any]]:
    """Return the rows of a script's last run; none if it has not run."""
    path = (directory or RESULTS) / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Return median and quartiles of the ratios of each round, because other work slows both of a round."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_short(v)}" for k, v in value.items())
    if dataclasses.is_dataclass(value):
        return getattr(value, "name", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
