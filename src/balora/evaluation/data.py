"""The rows that a task is measured on: from a local file or folder, or the hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from balora.data.hub import load_hub_dataset, looks_local
from balora.data.readers import SUFFIXES, Row, Table, join
from balora.data.sources import FilesSource, open_source
from balora.errors import BALoraError, suggest


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a task's rows are when the user does not say."""

    hub: str
    """A hub id."""
    configurations: tuple[str | None, ...] = (None,)
    """One or more, joined."""
    splits: tuple[str, ...] = ("test",)
    """The first that is there is taken."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows and where they came from."""

    source: str
    rows: Sequence[Row]
    columns: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 over the rows in order: the same data give the same digest, wherever they lie."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def column(self, *names: str) -> str:
        """The first of several names that is a column here.

        Raises:
            BALoraError: None of them is.
        """
        for name in names:
            if name in self.columns:
                return name
        hint = suggest(names[0], self.columns)
        raise BALoraError(
            f"{self.source} has no column {' or '.join(map(repr, names))}.{hint} Its columns are "
            f"{', '.join(self.columns)}."
        )


def read_rows(place: str | None, origin: Origin) -> Rows:
    """Read a task's rows.

    Args:
        place: What the user gave: a file, a folder or a hub id; None takes the task's own.
        origin: The task's own.

    Raises:
        BALoraError: The data are missing, broken or empty, or cannot be reached.
    """
    if place is not None and looks_local(place, SUFFIXES):
        table = _read_local(place, origin.splits)
    else:
        table = _read_hub(place or origin.hub, origin, chosen=place is not None)
    return Rows(table.name, table.rows, table.columns)


def _read_local(place: str, splits: tuple[str, ...]) -> Table:
    source = open_source(place)
    assert isinstance(source, FilesSource)
    if Path(place).expanduser().is_file():
        return source.read("train")  # a file alone is one split, whatever it is called
    names = {"validation" if split in ("dev", "validation") else split for split in splits}
    found = [split for split in source.splits if split in names]
    if not found and len(source.splits) == 1:
        found = list(source.splits)
    if not found:
        raise BALoraError(
            f"The folder {place} has no file for {' or '.join(splits)}; it has {', '.join(source.splits)}. Give the file itself."
        )
    return source.read(found[0])


def _read_hub(name: str, origin: Origin, *, chosen: bool) -> Table:
    tables = []
    for configuration in (None,) if chosen and name != origin.hub else origin.configurations:
        dataset: Any = load_hub_dataset(name, configuration, origin.splits[0], key="--data TASK=FILE")
        rows = dataset.to_list()
        tables.append(Table(f"{name} ({origin.splits[0]})", tuple(dataset.column_names), rows, [""] * len(rows)))
    table = join(tables)
    if not table.rows:
        raise BALoraError(f"{name} has no rows in its split {origin.splits[0]}.")
    return table


__all__ = ["Origin", "Rows", "read_rows"]
