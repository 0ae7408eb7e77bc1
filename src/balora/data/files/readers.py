"""Readers of local data files, which keep the line of each row: JSON lines, JSON, CSV, TSV, Parquet, Arrow.

The readers of `datasets` are faster, but they do not report the line of a mistake in a file. A file may be compressed.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import zlib
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from balora.data.files.compressed import open_unpacked, read_parquet, start_of
from balora.data.files.delimited import read_csv, read_tsv
from balora.data.files.lazy_rows import ArrowRows, JsonLines, Locations
from balora.data.files.tables import Row, Table, collect, row_locations, shorten
from balora.errors import BALoraError, suggest_path

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".ndjson")
"""Suffixes of the files that `read_table` can read."""
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")
"""Suffixes that may follow those of `SUFFIXES`."""
ENDINGS = (*SUFFIXES, *(suffix + compression for suffix in SUFFIXES for compression in COMPRESSIONS))
"""All endings of the names of data files."""
SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "dev", "valid", "val", "eval", "evaluation"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
    "dev_matched": "validation_matched",
    "dev_mismatched": "validation_mismatched",
}
"""Split names of `datasets`, by the names that files use."""
_SHARD = re.compile(r"(part|shard|chunk)[-_](r-|m-)?\d+(-[0-9a-f-]+)?|[\w-]+[-_]\d+-of-\d+", re.I)
_NOT_DATA = (
    (re.compile(rb"version https://git-lfs"), "a Git LFS pointer, not the data: fetch them with `git lfs pull`"),
    (re.compile(rb"PK\x03\x04"), "a ZIP archive: unpack it"),
    (re.compile(rb"(?s).{257}ustar"), "a tar archive: unpack it"),
    (re.compile(rb"\s*<(!doctype )?html", re.I), "a web page: download the file itself"),
)


class EmptyFileError(BALoraError):
    """A data file has no rows."""


def data_suffix(name: str) -> str | None:
    """Return the suffix that says the kind of a data file, without that of a compression, or None.

    Example:
        >>> data_suffix("train.jsonl.gz"), data_suffix("train.TSV"), data_suffix("README.md")
        ('.jsonl', '.tsv', None)
    """
    suffix = next((ending for ending in ENDINGS if name.lower().endswith(ending)), None)
    return suffix and f".{suffix.split('.')[1]}"


def is_data_file(path: Path) -> bool:
    """Decide by its name if a file in a folder holds rows: a known suffix, or a shard such as ``part-00000`` without one.

    Hidden files are none, such as the ``._train.jsonl`` of macOS.
    """
    if path.name.startswith((".", "__")):
        return False
    return data_suffix(path.name) is not None or _SHARD.fullmatch(_uncompressed(path.name)) is not None


def read_table(path: Path) -> Table:
    """Read a data file by its suffix. Without a suffix, its content decides.

    Raises:
        BALoraError: The file is missing, of an unknown kind, broken (the message has the line), without rows, or has several
            splits.
    """
    splits = read_splits(path)
    if len(splits) > 1:
        raise BALoraError(f"{path} has several splits ({', '.join(splits)}); give a file with the rows of one.")
    return next(iter(splits.values()))


def read_splits(path: Path) -> dict[str, Table]:
    """Read a data file with its splits: JSON may hold ``{"train": [...], "test": [...]}``; any other file has only ``train``.

    Raises:
        BALoraError: The file is missing, of an unknown kind, broken (the message has the line) or without rows.
    """
    if not path.is_file():
        raise BALoraError(f"There is no data file {path}.{suggest_path(path)}")
    try:
        return _read(path)
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (EOFError, zlib.error, lzma.LZMAError) as error:
        raise BALoraError(f"{path} is damaged or incomplete: it cannot be decompressed ({_short(error)}).") from error
    except OSError as error:
        raise BALoraError(f"{path} cannot be read: {_short(error)}.") from error


def _read(path: Path) -> dict[str, Table]:
    start = start_of(path, 512)
    if not start:
        raise EmptyFileError(f"{path} is empty: it has no rows.")
    for pattern, what in _NOT_DATA:
        if pattern.match(start):
            raise BALoraError(f"{path} is {what}.")
    suffix = data_suffix(path.name) or _suffix_of(path, start)
    if suffix in (".jsonl", ".ndjson", ".json"):
        # Spark writes JSON lines to part-00000-….json.
        return _read_json(path, lines=suffix != ".json" or _SHARD.match(path.name) is not None)
    if suffix in (".parquet", ".arrow"):
        table = _read_arrow(path, start)
    elif suffix == ".csv":
        with _text(path, newline="") as lines:
            table = read_csv(path, lines)
    else:
        with _text(path, newline="\n") as lines:
            table = read_tsv(path, lines.read())
    return {"train": _filled(table)}


def _suffix_of(path: Path, start: bytes) -> str:
    """Return the suffix that fits the first bytes of a file without a known one."""
    if not Path(_uncompressed(path.name)).suffix:
        if start.startswith((b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")):
            return ".parquet"
        if start.removeprefix(b"\xef\xbb\xbf").lstrip().startswith((b"{", b"[")):
            return ".jsonl"
    raise BALoraError(
        f"{path} is not of a known kind; data files end in {', '.join(SUFFIXES)}, and may be compressed "
        f"({', '.join(COMPRESSIONS)})."
    )


def _uncompressed(name: str) -> str:
    return name.rpartition(".")[0] if name.lower().endswith(COMPRESSIONS) else name


def _filled(table: Table) -> Table:
    if not table.rows:
        raise EmptyFileError(f"{table.name} is empty: it has no rows.")
    return table


def _text(path: Path, newline: str | None = None) -> io.TextIOWrapper:
    return io.TextIOWrapper(open_unpacked(path), encoding="utf-8-sig", newline=newline)


def _read_json(path: Path, *, lines: bool) -> dict[str, Table]:
    """Read objects line by line, a list of objects, a list under the key ``data``, or a list for each split.

    Both suffixes are used for both kinds of file, so the content decides. ``lines`` tells how to report what is neither.
    """
    streamed = _stream_json_lines(path) if lines else None
    if streamed is not None:
        return {"train": streamed}
    with _text(path) as file:
        text = file.read()
    try:
        content = _loads(text) if text.strip() else []
    except ValueError as error:
        decoding = error if isinstance(error, json.JSONDecodeError) else None  # a number may also have too many digits
        # An array in which a row is broken is reported by its own line.
        if (decoding and decoding.msg == "Extra data") or (lines and not text.lstrip().startswith("[")):
            return {"train": _filled(_json_lines(path, text))}
        line = f" line {decoding.lineno}" if decoding else ""
        raise BALoraError(f"{path}{line}: not valid JSON ({_short(error)}).") from error
    except RecursionError as error:
        raise BALoraError(f"{path} is nested too deeply to be rows of data.") from error
    if isinstance(content, dict):
        one_line = "\n" not in text.strip()
        if isinstance(content.get("data"), list) and not (lines and one_line):
            return {"train": _filled(_objects(path, content["data"]))}
        splits = _split_lists(content)
        if splits:
            return {name: _objects(path, rows, f"{path} ({name})") for name, rows in splits.items()}
        if lines and one_line:
            return {"train": _json_lines(path, text)}
    if not isinstance(content, list):
        _refuse_json(path, content)
    return {"train": _filled(_objects(path, content))}


def _refuse_json(path: Path, content: Any) -> NoReturn:
    columns = (
        isinstance(content, dict) and content and all(isinstance(value, list | dict) for value in content.values())
    )
    raise BALoraError(
        f"{path} must hold a list of objects (or one under the key data, or one for each split), one object per row."
        + (" It seems to hold columns; pandas writes rows with to_json(orient='records')." if columns else "")
    )


def _split_lists(content: Row) -> dict[str, list[Any]]:
    """Return the lists of rows in an object that has one for each split; an empty result means that it is another object."""
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    known = {key: value for key, value in lists.items() if key.lower() in SPLIT_NAMES}
    if len(lists) < len(content):  # beside a version or a description
        lists = known
    # A row can have lists of objects too, such as messages.
    if not known or not any(isinstance(row, dict) for rows in lists.values() for row in rows):
        return {}
    names = [SPLIT_NAMES.get(key.lower(), key) for key in lists]
    return {} if len(set(names)) < len(names) else dict(zip(names, lists.values(), strict=True))


def _objects(path: Path, rows: list[Any], name: str | None = None) -> Table:
    return collect(path, zip(row_locations(name or str(path), len(rows)), map(_object, rows), strict=True))


def _json_lines(path: Path, text: str) -> Table:
    lines = enumerate(text.split("\n"), 1)
    return collect(path, ((f"{path} line {number}", _parse(line)) for number, line in lines if line.strip()))


def _stream_json_lines(path: Path) -> Table | None:
    """Read an uncompressed file of JSON lines without keeping its rows.

    Return None for any other file, and if a line is not an object: then the file is read as a whole, which says what is wrong.
    """
    starts, numbers, columns, position = array("q"), array("q"), dict[str, None](), 0
    with path.open("rb") as file:
        if not file.read(4).removeprefix(b"\xef\xbb\xbf").startswith(b"{"):
            return None
        file.seek(0)
        for number, line in enumerate(file, 1):
            if not line.isspace():
                try:
                    row = _loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
                except (ValueError, RecursionError):
                    return None
                if not isinstance(row, dict):
                    return None
                if not columns.keys() >= row.keys():
                    columns.update(dict.fromkeys(row))
                starts.append(position)
                numbers.append(number)
            position += len(line)
    if len(starts) < 2:  # one object can also be a list for each split
        return None
    return Table(str(path), tuple(columns), JsonLines(path, starts, position), Locations(f"{path} line", numbers))


def _loads(text: str) -> Any:
    """Read JSON; a key that occurs twice in an object is an error, because Python would take the last one in silence."""
    return json.loads(text, object_pairs_hook=_without_repetition)


def _without_repetition(pairs: list[tuple[str, Any]]) -> Row:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return row


def _parse(line: str) -> Row | str:
    try:
        return _object(_loads(line))
    except ValueError as error:
        return f"not valid JSON ({_short(error)})"
    except RecursionError:
        return "nested too deeply"


def _object(value: Any) -> Row | str:
    if isinstance(value, dict):
        return value
    return f"not an object with columns but {shorten(json.dumps(value, ensure_ascii=False, default=str))}"


def _read_arrow(path: Path, start: bytes) -> Table:
    """Read Parquet, Arrow's file format or its stream format, which is that of `datasets`."""
    import pyarrow as pa

    kind = "Parquet" if data_suffix(path.name) == ".parquet" or start.startswith(b"PAR1") else "Arrow"
    try:
        with open_unpacked(path) as file:
            is_plain = isinstance(file, io.BufferedReader) and isinstance(file.raw, io.FileIO)
            content = pa.memory_map(str(path)).read_buffer() if is_plain else pa.py_buffer(file.read())
        if kind == "Parquet":
            table = read_parquet(path, content)
        else:
            table = (pa.ipc.open_file if start.startswith(b"ARROW1") else pa.ipc.open_stream)(content).read_all()
    except pa.ArrowException as error:
        raise BALoraError(f"{path} is not a readable {kind} file ({_short(error)}).") from error
    _refuse_repeated_columns(path, table.column_names)
    rows = ArrowRows(table)
    locations = row_locations(str(path), len(rows))
    return Table(str(path), tuple(table.column_names), rows, locations, _declared_classes(table.schema.metadata))


def _refuse_repeated_columns(path: Path, names: list[str]) -> None:
    """Refuse a table with two columns of one name: as rows, only the last of them would be left."""
    if len(set(names)) < len(names):
        raise BALoraError(f"{path} has two columns of one name: {', '.join(names)}. Rename or remove one of them.")


def _declared_classes(metadata: dict[bytes, bytes] | None) -> dict[str, tuple[str, ...]]:
    """Return the names of classes that `datasets` stores in the files that it writes."""
    try:
        features = json.loads((metadata or {})[b"huggingface"])["info"]["features"]
        return {
            column: tuple(feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel" and feature.get("names")
        }
    except (KeyError, TypeError, ValueError, AttributeError):
        return {}


def _short(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    text = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return text.splitlines()[0].rstrip(".")


def iterate_rows(path: Path) -> Iterator[tuple[str, Row | str]]:
    """Yield the rows of a file of JSON lines (also compressed) or a Parquet file with their locations, without reading all of it.

    A text in place of a row is the reason why the row cannot be used.

    Raises:
        BALoraError: The file is missing or damaged.
    """
    if not path.is_file():
        raise BALoraError(f"There is no data file {path}.{suggest_path(path)}")
    try:
        if data_suffix(path.name) == ".parquet":
            import pyarrow.parquet as pq

            number = 0
            file = pq.ParquetFile(path)
            _refuse_repeated_columns(path, file.schema_arrow.names)
            for batch in file.iter_batches():
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path} row {number}", row
            return
        with _text(path) as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{path} line {number}", _parse(line)
    except UnicodeDecodeError as error:
        raise BALoraError(f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8.") from error
    except (EOFError, zlib.error, lzma.LZMAError, OSError, ValueError) as error:
        raise BALoraError(f"{path} cannot be read: {_short(error)}.") from error
