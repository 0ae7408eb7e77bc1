"""Readers of local data files, which keep the line of each row: JSON lines, JSON, CSV, TSV, Parquet.

The readers of `datasets` are faster, but they do not report the line of a mistake in a file.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError, suggest_path

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
    """Names of classes by column, if the source declares them."""

    def take(self, indices: Sequence[int]) -> Table:
        """Select rows, in the given order."""
        rows, locations = [self.rows[i] for i in indices], [self.locations[i] for i in indices]
        return dataclasses.replace(self, rows=rows, locations=locations)


def row_locations(name: str, count: int) -> list[str]:
    """Return the locations of rows that have no lines, such as ``data.parquet row 1``."""
    return [f"{name} row {number}" for number in range(1, count + 1)]


def join(tables: Sequence[Table]) -> Table:
    """Concatenate tables."""
    if len(tables) == 1:
        return tables[0]
    return Table(
        name=" + ".join(dict.fromkeys(table.name for table in tables)),
        columns=tuple(dict.fromkeys(column for table in tables for column in table.columns)),
        rows=[row for table in tables for row in table.rows],
        locations=[location for table in tables for location in table.locations],
        class_names=tables[0].class_names,
    )


class BadRows:
    """Collection of rows that cannot be used. The error names the first three and counts the rest."""

    def __init__(self) -> None:
        self.found: list[str] = []

    def add(self, location: str, problem: str) -> None:
        """Add one row."""
        self.found.append(f"{location}: {problem}")

    def raise_if_any(self, advice: str = "") -> None:
        """Raise one `BALoraError` for all bad rows, if there are any. ``advice`` is a sentence that says what to do."""
        advice = f" {advice}" if advice else ""
        if len(self.found) == 1:
            raise BALoraError(f"A row of the data cannot be used. {self.found[0]}.{advice}")
        if self.found:
            more = len(self.found) - _SHOWN
            shown = "; ".join(self.found[:_SHOWN]) + (f"; and {more:,} more" if more > 0 else "")
            raise BALoraError(f"{len(self.found):,} rows of the data cannot be used. {shown}.{advice}")


def read_table(path: Path) -> Table:
    """Read a data file by its suffix.

    Raises:
        BALoraError: The file is missing, of an unknown kind, broken (the message has the line) or without rows.
    """
    if not path.is_file():
        raise BALoraError(f"There is no data file {path}.{suggest_path(path)}")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise BALoraError(f"{path} is not of a known kind; data files end in {', '.join(SUFFIXES)}.")
    try:
        table = reader(path)
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except OSError as error:
        raise BALoraError(f"{path} cannot be read: {error.strerror or error}.") from error
    if not table.rows:
        raise BALoraError(f"{path} is empty: it has no rows.")
    return table


def _table(path: Path, records: Iterable[tuple[str, Row | str]], columns: Sequence[str] | None = None) -> Table:
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


def _read_jsonl(path: Path) -> Table:
    with path.open(encoding="utf-8-sig") as lines:
        return _table(path, ((f"{path} line {n}", _parse(line)) for n, line in enumerate(lines, 1) if line.strip()))


def _parse(line: str) -> Row | str:
    try:
        return _object(json.loads(line.rstrip("\r\n")))
    except ValueError as error:
        return f"not valid JSON ({_short(error)})"


def _object(value: Any) -> Row | str:
    if isinstance(value, dict):
        return value
    return f"not an object with columns but {shorten(json.dumps(value, ensure_ascii=False, default=str))}"


def _read_json(path: Path) -> Table:
    """Read a list of objects, a list under the key ``data``, or one object per line, which many .json files contain."""
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
    return _table(path, zip(row_locations(str(path), len(content)), map(_object, content), strict=True))


def _read_csv(path: Path) -> Table:
    """Read fields quoted as in RFC 4180; a quoted field can contain line breaks."""
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than some answers need
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
    """Read fields separated by tabs, without quoting, because GLUE's sentences contain single quotation marks."""
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        records = ((n, line.rstrip("\r\n").split("\t")) for n, line in enumerate(lines, 1) if line.strip("\r\n"))
        return _delimited(path, records)


def _delimited(path: Path, records: Iterator[tuple[int, list[str]]]) -> Table:
    header = next(records, (0, []))[1]
    if len(set(header)) < len(header):
        raise BALoraError(f"{path} names a column twice in its first line: {', '.join(header)}.")

    def rows() -> Iterator[tuple[str, Row | str]]:
        for number, fields in records:
            fits = len(fields) == len(header)
            problem = f"{len(fields)} fields, but the first line names {len(header)} columns"
            yield f"{path} line {number}", dict(zip(header, fields, strict=True)) if fits else problem

    return _table(path, rows(), header)


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise BALoraError(f"{path} is not a readable Parquet file ({_short(error)}).") from error
    rows = table.to_pylist()
    return Table(str(path), tuple(table.column_names), rows, row_locations(str(path), len(rows)))


def _short(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return str(error).splitlines()[0].rstrip(".")


def shorten(text: str) -> str:
    """Cut a text for a message to 40 characters."""
    return text if len(text) <= 40 else text[:37] + "..."


_READERS: dict[str, Callable[[Path], Table]] = {
    ".jsonl": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
SUFFIXES = tuple(_READERS)
"""Suffixes of the files that `read_table` can read."""
