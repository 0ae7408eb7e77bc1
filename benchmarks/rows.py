"""Rows of results: one JSON object to a line, with machine, versions and commit; plots and tables read them."""

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
    """Gathers the rows of one script and writes them, replacing those of its last run.

    Args:
        name: Of the file in ``results/``.
        output: Another folder, to try a script.
    """

    def __init__(self, name: str, output: Path | None = None) -> None:
        self.path = (output or RESULTS) / f"{name}.jsonl"
        self.origin = provenance()
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> dict[str, Any]:
        """One row; shapes are written out. Failures are rows too, with ``status``."""
        made = {k: dataclasses.asdict(v) if dataclasses.is_dataclass(v) else v for k, v in row.items()}
        made = {"benchmark": self.path.stem, "status": "ok", **made, **self.origin}
        self.rows.append(made)
        print(self.path.stem, *(f"{k} {_short(v)}" for k, v in row.items() if not isinstance(v, list)), flush=True)
        self.write()
        return made

    def write(self) -> None:
        """Write to the side and rename, so that a stopped run leaves the rows it made."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        side = self.path.with_suffix(".tmp")
        side.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(side, self.path)


def read(name: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The rows of a script's last run; none where it has not run."""
    path = (folder or RESULTS) / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def summary(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return {"median": values[0], "low": values[0], "high": values[0]}
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "low": low, "high": high}


def ratios(above: Sequence[float], below: Sequence[float]) -> dict[str, float]:
    """Round by round, then their median and quartiles: what slows a round slows both."""
    return summary([a / b for a, b in zip(above, below, strict=True)])


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{k}={_short(v)}" for k, v in value.items())
    if dataclasses.is_dataclass(value):
        return getattr(value, "name", "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
