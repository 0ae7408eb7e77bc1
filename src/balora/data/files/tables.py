"""Rows of data with their locations, for messages, and the collection of rows that cannot be used."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from balora.data.files.lazy_rows import Joined, LazyRows, Locations, Picked
from balora.errors import BALoraError

Row = dict[str, Any]
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of one file or hub dataset, with their locations for messages."""

    name: str
    """Path of the file or id of the hub dataset."""
    columns: tuple[str, ...]
    """Names of all columns, in order of appearance."""
    rows: Sequence[Row]
    locations: Sequence[str]
    """Location of each row, such as ``train.jsonl line 3``."""
    class_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Names of classes by column, if the source declares them. Its whole numbers are positions in these names."""
    mixed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Reasons, by column, why its values cannot be read as classes: the joined sources declare different classes."""

    def take(self, indices: Sequence[int]) -> Table:
        """Select rows, in the given order."""
        if isinstance(self.locations, Locations):
            locations: Sequence[str] = self.locations.take(indices)
        else:
            locations = [self.locations[i] for i in indices]
        rows = Picked(self.rows, indices) if isinstance(self.rows, LazyRows) else [self.rows[i] for i in indices]
        return dataclasses.replace(self, rows=rows, locations=locations)


def row_locations(name: str, count: int) -> Locations:
    """Return the locations of rows that have no lines, such as ``data.parquet row 1``."""
    return Locations(f"{name} row", range(1, count + 1))


def join(tables: Sequence[Table]) -> Table:
    """Concatenate tables. A column whose classes the tables declare differently is noted in `Table.mixed`."""
    if len(tables) == 1:
        return tables[0]
    class_names: dict[str, tuple[str, ...]] = {}
    mixed = {column: reason for table in tables for column, reason in table.mixed.items()}
    for column in dict.fromkeys(column for table in tables for column in table.class_names):
        found = {table.name: table.class_names.get(column) for table in tables if column in table.columns}
        numbered = any(name.lstrip("-").isdecimal() for names in found.values() for name in names or ())
        different = {names for names in found.values() if names is not None or numbered}
        if len(different) == 1:
            class_names[column] = next(names for names in different if names is not None)
        else:
            shown = "; ".join(f"{name}: {', '.join(names[:10]) if names else 'none'}" for name, names in found.items())
            mixed.setdefault(column, f"its sources declare different classes ({shown})")
    return Table(
        name=" + ".join(dict.fromkeys(table.name for table in tables)),
        columns=tuple(dict.fromkeys(column for table in tables for column in table.columns)),
        rows=_joined_rows([table.rows for table in tables]),
        locations=[location for table in tables for location in table.locations],
        class_names=class_names,
        mixed=mixed,
    )


def _joined_rows(parts: Sequence[Sequence[Row]]) -> Sequence[Row]:
    if any(isinstance(rows, LazyRows) for rows in parts):
        return Joined(parts)
    return [row for rows in parts for row in rows]


class BadRows:
    """Rows that cannot be used. The error names the first three and counts the rest."""

    def __init__(self) -> None:
        self.count = 0
        self.first: list[str] = []
        self.unlabelled = 0
        """Number of rows that lack a label, which an option leaves out."""

    def add(self, location: str, problem: str, *, unlabelled: bool = False) -> None:
        """Add one row."""
        self.count += 1
        self.unlabelled += unlabelled
        if len(self.first) < _SHOWN:
            self.first.append(f"{location}: {problem}")

    def raise_if_any(self, advice: str = "") -> None:
        """Raise one `BALoraError` for all bad rows, if there are any. ``advice`` is a sentence that says what to do."""
        advice = f" {advice}" if advice else ""
        advice += " data.unlabelled: leave_out leaves out rows without a label." if self.unlabelled else ""
        if self.count == 1:
            raise BALoraError(f"A row of the data cannot be used. {self.first[0]}.{advice}")
        if self.count:
            more = self.count - _SHOWN
            shown = "; ".join(self.first) + (f"; and {more:,} more" if more > 0 else "")
            raise BALoraError(f"{self.count:,} rows of the data cannot be used. {shown}.{advice}")


def shorten(text: str) -> str:
    """Cut a text for a message to 40 characters."""
    return text if len(text) <= 40 else text[:37] + "..."


def collect(path: Path, records: Iterable[tuple[str, Row | str]], columns: Sequence[str] | None = None) -> Table:
    """Collect located rows in a table. A text in place of a row is the reason why the row cannot be used."""
    rows, locations, bad = [], [], BadRows()
    for location, row in records:
        if isinstance(row, str):
            bad.add(location, row)
        else:
            rows.append(row)
            locations.append(location)
    bad.raise_if_any()
    names = columns or dict.fromkeys(key for row in rows for key in row)
    return Table(str(path), tuple(names), rows, locations)
