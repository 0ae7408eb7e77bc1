"""Local data files as rows that know their line: JSON lines, JSON, CSV, TSV, Parquet.

The readers of `datasets` are faster but say of a broken file only that it is broken; people need the line.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from balora.errors import BALoraError, suggest

Row = dict[str, Any]
_SHOWN = 3


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows from one place, each with a name for messages."""

    name: str
    """The file or hub dataset."""
    columns: tuple[str, ...]
    """Every column there is, in order of appearance."""
    rows: Sequence[Row]
    places: Sequence[str]
    """Of each row: where it stands, such as ``train.jsonl line 3``."""
    class_names: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """Names of classes by column, where the source declares them."""

    def take(self, indices: Sequence[int]) -> Table:
        """Some of the rows, in the given order."""
        rows, places = [self.rows[i] for i in indices], [self.places[i] for i in indices]
        return dataclasses.replace(self, rows=rows, places=places)


def numbered(name: str, count: int) -> list[str]:
    """Places of rows that have no lines, such as ``data.parquet row 1``."""
    return [f"{name} row {number}" for number in range(1, count + 1)]


def join(tables: Sequence[Table]) -> Table:
    """Several tables one after the other."""
    if len(tables) == 1:
        return tables[0]
    return Table(
        name=" + ".join(dict.fromkeys(table.name for table in tables)),
        columns=tuple(dict.fromkeys(column for table in tables for column in table.columns)),
        rows=[row for table in tables for row in table.rows],
        places=[place for table in tables for place in table.places],
        class_names=tables[0].class_names,
    )


class BadRows:
    """Collects rows that cannot be used; names the first three and counts the rest."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, where: str, what: str) -> None:
        """Remember one bad row."""
        self.found.append(f"{where}: {what}")

    def raise_if_any(self) -> None:
        """Raise one error for all bad rows.

        Raises:
            BALoraError: There are some.
        """
        if len(self.found) == 1:
            raise BALoraError(f"A row of the data cannot be used. {self.found[0]}.")
        if self.found:
            more = len(self.found) - _SHOWN
            shown = "; ".join(self.found[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")
            raise BALoraError(f"{len(self.found):,} rows of the data cannot be used. {shown}.")


def read_table(path: Path) -> Table:
    """Read a data file by its suffix.

    Args:
        path: A ``.jsonl``, ``.json``, ``.csv``, ``.tsv`` or ``.parquet`` file, UTF-8.

    Raises:
        BALoraError: The file is missing, of another kind, broken (with the line) or without rows.
    """
    if not path.is_file():
        siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise BALoraError(f"There is no data file {path}.{suggest(path.name, siblings)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BALoraError(f"{path} is not of a kind that can be read: {', '.join(SUFFIXES)}.")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise BALoraError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not table.rows:
        raise BALoraError(f"{path} is empty: it has no rows.")
    return table


def _read_jsonl(path: Path) -> Table:
    rows, places, bad = [], [], BadRows()
    with path.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.rstrip("\r\n"))
            except ValueError as error:
                bad.add(f"{path} line {number}", f"not valid JSON ({_short(error)})")
                continue
            if not isinstance(row, dict):
                bad.add(f"{path} line {number}", f"not an object with columns but {_shown(row)}")
                continue
            rows.append(row)
            places.append(f"{path} line {number}")
    bad.raise_if_any()
    return Table(str(path), _columns(rows), rows, places)


def _read_json(path: Path) -> Table:
    """A list of objects, that list under ``data``, or (as many files named .json are) one object a line."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        content = json.loads(text) if text.strip() else []
    except json.JSONDecodeError as error:
        if error.msg == "Extra data":
            return _read_jsonl(path)
        raise BALoraError(f"{path} line {error.lineno}: not valid JSON ({_short(error)}).") from error
    if isinstance(content, dict) and isinstance(content.get("data"), list):
        content = content["data"]
    if not isinstance(content, list):
        raise BALoraError(f"{path} must hold a list of objects (or one under the key data), one object per row.")
    bad = BadRows()
    for number, row in enumerate(content, 1):
        if not isinstance(row, dict):
            bad.add(f"{path} row {number}", f"not an object with columns but {_shown(row)}")
    bad.raise_if_any()
    return Table(str(path), _columns(content), content, numbered(str(path), len(content)))


def _read_csv(path: Path) -> Table:
    """Quoted as RFC 4180 has it; a quoted field may hold line breaks."""
    limit = csv.field_size_limit(sys.maxsize)  # the module's own limit is 128 KiB, less than some answers
    try:
        with path.open(encoding="utf-8-sig", newline="") as lines:
            return _delimited(path, _csv_records(path, csv.reader(lines, strict=True)))
    finally:
        csv.field_size_limit(limit)


def _csv_records(path: Path, reader: Any) -> Iterator[tuple[int, list[str]]]:
    while True:
        start = reader.line_num + 1
        try:
            record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BALoraError(f"{path} line {start}: not valid CSV ({error}).") from error
        if record:
            yield start, record


def _read_tsv(path: Path) -> Table:
    """Tabs separate, and nothing is quoted: GLUE's sentences hold single quotation marks."""
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        records = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(lines, 1) if line.strip("\r\n"))
        return _delimited(path, records)


def _delimited(path: Path, records: Iterator[tuple[int, list[str]]]) -> Table:
    header = next(records, (0, []))[1]
    if len(set(header)) < len(header):
        raise BALoraError(f"{path} names a column twice in its first line: {', '.join(header)}.")
    rows, places, bad = [], [], BadRows()
    for number, fields in records:
        if len(fields) != len(header):
            bad.add(f"{path} line {number}", f"{len(fields)} fields where the first line names {len(header)} columns")
            continue
        rows.append(dict(zip(header, fields, strict=True)))
        places.append(f"{path} line {number}")
    bad.raise_if_any()
    return Table(str(path), tuple(header), rows, places)


def _read_parquet(path: Path) -> Table:
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise BALoraError(f"{path} is not a readable Parquet file ({_short(error)}).") from error
    rows = table.to_pylist()
    return Table(str(path), tuple(table.column_names), rows, numbered(str(path), len(rows)))


def _columns(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(key for row in rows for key in row))


def _short(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return str(error).splitlines()[0].rstrip(".")


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 40 else text[:37] + "..."


_READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
"""The kinds of data file that can be read."""
