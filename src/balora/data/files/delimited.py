"""Records of comma- and tab-separated text, with the number of the line on which each begins.

CSV files are quoted as in RFC 4180. Files separated by tabs come in two kinds: GLUE's have no quoting, and their sentences
contain single quotation marks; pandas and Excel quote a field if it contains a quotation mark, a tab or a line break. Some
programs put a backslash before such a character instead (`balora.data.files.escaped`).
"""

from __future__ import annotations

import csv
import logging
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from balora.data.files.escaped import Record, unescaped
from balora.data.files.tables import Row, Table, collect
from balora.errors import BALoraError

logger = logging.getLogger("balora")
# A quoted field, or one without any quotation mark, and what ends it.
_FIELD = re.compile(r'(?:"(?P<quoted>(?:[^"]++|"")*+)"\r?|(?P<plain>[^"\t\n]*+))(?P<end>\t|\n|\Z)')

_BACKSLASHES = (
    " In CSV, a quotation mark inside a quoted field is doubled; a file that has a backslash before it can be rewritten with "
    "pandas.read_csv(escapechar='\\\\')."
)


def read_csv(path: Path, lines: Iterator[str]) -> Table:
    """Read fields quoted as in RFC 4180; a quoted field can contain line breaks."""
    limit = csv.field_size_limit(sys.maxsize)  # the default of 128 KiB is less than some answers need
    try:
        return _table(path, _csv_records(path, csv.reader(lines, strict=True)))
    finally:
        csv.field_size_limit(limit)


def read_tsv(path: Path, text: str) -> Table:
    """Read fields separated by tabs. Quotation marks are text unless the whole file is quoted; a warning says so then."""
    plain = [
        Record(number, line.rstrip("\r\n").split("\t"))
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip("\r\n")
    ]
    return _table(path, iter(unescaped(path, text, plain) or _unquoted(path, text, plain) or plain))


def _csv_records(path: Path, reader: Any) -> Iterator[Record]:
    while True:
        start = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BALoraError(
                f"{path} line {start}: not valid CSV ({str(error).rstrip('.')}).{_BACKSLASHES}"
            ) from error
        if fields:
            yield Record(start, fields)


def _table(path: Path, records: Iterator[Record]) -> Table:
    """Make a table of records. Several columns without a name are left out; one, such as pandas' index, is harmless."""
    header = next(records, Record(0, [])).fields
    named = [index for index, name in enumerate(header) if name.strip()]
    used = named if len(named) < len(header) - 1 else list(range(len(header)))
    names = [header[index] for index in used]
    if header and not named:
        raise BALoraError(f"{path} names no column in its first line.")
    if len(set(names)) < len(names):
        raise BALoraError(f"{path} names a column twice in its first line: {', '.join(names)}.")

    def rows() -> Iterator[tuple[str, Row | str]]:
        for number, fields in records:
            if named[-1] < len(fields) <= len(header):
                yield f"{path} line {number}", {header[index]: fields[index] for index in used if index < len(fields)}
            else:
                problem = f"{len(fields)} fields, but the first line names {len(header)} columns"
                yield f"{path} line {number}", problem

    return collect(path, rows(), names)


def _unquoted(path: Path, text: str, plain: Sequence[Record]) -> list[Record] | None:
    """Undo the quoting of a file separated by tabs. Return None if its quotation marks are text."""
    if not any(field.startswith('"') for _, fields in plain for field in fields):
        return None
    parsed = _parse_quoted(text)
    width = len(plain[0].fields)
    if parsed is None or any(len(record.fields) != len(parsed[0][0].fields) for record, _ in parsed):
        doubled = [r.line for r in plain if any(f[:1] == f[-1:] == '"' and '""' in f[1:-1] for f in r.fields)]
        if doubled:
            logger.warning(
                "%s line %s has a field that is quoted as in CSV, but the file is not quoted throughout, so all quotation "
                "marks are read as text. If they should not be, save the file as .csv.",
                path,
                doubled[0],
            )
        return None
    quoted = [field for record, flags in parsed for field, flag in zip(record.fields, flags, strict=True) if flag]
    others = [field for record, flags in parsed for field, flag in zip(record.fields, flags, strict=True) if not flag]
    spans = any("\t" in field or "\n" in field for field in quoted)
    header = any(parsed[0][1])
    if spans and not header and all(len(record.fields) == width for record in plain):
        # Two rows with one quotation mark each look like one row with a line break.
        logger.warning(
            "%s has fields that begin with a quotation mark and end on a later line or in a later column; all quotation marks "
            "are read as text. If they should not be, save the file as .csv.",
            path,
        )
        return None
    # Excel also quotes a field that contains a comma.
    commas = all("," in field for field in quoted) and not any("," in field for field in others)
    if not (spans or header or commas or any('"' in field for field in quoted)):
        _warn_of_kept_marks(path, parsed)
        return None
    logger.warning(
        "%s is quoted as in CSV, so quotation marks around a field are not part of the text (%s fields).",
        path,
        f"{len(quoted):,}",
    )
    return [record for record, _ in parsed]


def _parse_quoted(text: str) -> list[tuple[Record, list[bool]]] | None:
    """Read records with quoted fields; each field comes with whether it was quoted. Return None if the text is not quoted."""
    records: list[tuple[Record, list[bool]]] = []
    fields: list[str] = []
    flags: list[bool] = []
    position, line, start = 0, 1, 1
    while position < len(text) or fields:
        match = _FIELD.match(text, position)
        if match is None:
            return None
        quoted = match["quoted"]
        fields.append(match["plain"].rstrip("\r") if quoted is None else quoted.replace('""', '"'))
        flags.append(quoted is not None)
        line += match[0].count("\n")
        position = match.end()
        if match["end"] != "\t":
            if fields != [""]:
                records.append((Record(start, fields), flags))
            fields, flags, start = [], [], line
    return records


def _warn_of_kept_marks(path: Path, parsed: Sequence[tuple[Record, list[bool]]]) -> None:
    """Say which columns have all their values in quotation marks, although the file does not seem to be quoted."""
    header, rows = parsed[0][0].fields, parsed[1:]
    columns = [name for i, name in enumerate(header) if len(rows) > 1 and all(flags[i] for _, flags in rows)]
    if columns:
        logger.warning(
            "%s: all values of %s are in quotation marks, which are read as text. If they should not be, save the file as .csv.",
            path,
            ", ".join(map(repr, columns)),
        )
