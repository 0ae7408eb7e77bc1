"""Read the rows of a task from a local file or directory, or from the hub."""

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
class HubDataset:
    """Dataset on the hub that a task reads by default."""

    hub_id: str
    configurations: tuple[str | None, ...] = (None,)
    """Configurations to read; their rows are joined."""
    splits: tuple[str, ...] = ("test",)
    """Names of the split in a local directory; the first name is the split on the hub."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a task and the name of their source."""

    source: str
    rows: Sequence[Row]
    columns: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows in order. It does not depend on where the rows are stored."""
        digest = hashlib.sha256()
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    def column(self, *names: str) -> str:
        """Return the first of several names that is a column.

        Raises:
            BALoraError: None of the names is a column.
        """
        for name in names:
            if name in self.columns:
                return name
        hint = suggest(names[0], self.columns)
        raise BALoraError(
            f"{self.source} has no column {' or '.join(map(repr, names))}.{hint} Its columns are "
            f"{', '.join(self.columns)}."
        )


def read_rows(location: str | None, default: HubDataset) -> Rows:
    """Read the rows of a task.

    Args:
        location: File, directory or hub id that the user gave; None reads the default.
        default: The task's own dataset.

    Raises:
        BALoraError: The data are missing, damaged or empty, or the hub cannot be reached.
    """
    if location is not None and looks_local(location, SUFFIXES):
        table = _read_local(location, default.splits)
    else:
        table = _read_hub(location or default.hub_id, default, is_default=location is None)
    return Rows(table.name, table.rows, table.columns)


def _read_local(location: str, splits: tuple[str, ...]) -> Table:
    source = open_source(location)
    assert isinstance(source, FilesSource)
    if Path(location).expanduser().is_file():
        return source.read("train")  # `open_source` calls the only split of a single file "train"
    names = {"validation" if split in ("dev", "validation") else split for split in splits}
    found = [split for split in source.splits if split in names]
    if not found and len(source.splits) == 1:
        found = list(source.splits)
    if not found:
        raise BALoraError(
            f"The directory {location} has no file for {' or '.join(splits)}; it has {', '.join(source.splits)}. Give the "
            "path of the file."
        )
    return source.read(found[0])


def _read_hub(name: str, default: HubDataset, *, is_default: bool) -> Table:
    split = default.splits[0]
    tables = []
    for configuration in default.configurations if is_default or name == default.hub_id else (None,):
        dataset: Any = load_hub_dataset(name, configuration, split, key="--data TASK=FILE")
        rows = dataset.to_list()
        tables.append(Table(f"{name} ({split})", tuple(dataset.column_names), rows, [""] * len(rows)))
    table = join(tables)
    if not table.rows:
        raise BALoraError(f"{name} has no rows in its split {split}.")
    return table
