r"""Files separated by tabs in which a backslash protects tabs and line breaks.

pandas with ``escapechar`` and MySQL put a backslash before the character itself. PostgreSQL and MySQL also write ``\t``,
``\n`` and ``\\``, and ``\N`` for an empty cell.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

logger = logging.getLogger("balora")
_EMPTY = r"\N"
# Text without a backslash, a tab or a line break; a backslash with the character after it; or what ends a field.
_PIECE = re.compile(r"(?P<plain>[^\\\t\n]+)|\\(?P<escaped>(?s:.))|(?P<end>[\t\n])|(?P<last>\\\Z)")
_CHARACTERS = {"t": "\t", "n": "\n", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "0": "\0"}
_LETTER = re.compile(r"\\(.)", re.DOTALL)
_KNOWN = frozenset('tnr\\"\t\n')


class Record(NamedTuple):
    """Fields of one record."""

    line: int
    """Number of the line on which the record begins, from 1."""
    fields: list[str]


def unescaped(path: Path, text: str, plain: Sequence[Record]) -> list[Record] | None:
    r"""Undo the escapes of a file separated by tabs, and say so. Return None if its backslashes are text.

    A backslash is also text (LaTeX, paths), so the escapes are undone only if the file shows that they are escapes: a cell is
    ``\N``, or the rows have as many fields as the first line only if a tab or line break after a backslash does not end a
    field. A file that could be read in both ways is read as text, and a warning says so.

    Args:
        path: Place of the file, for messages.
        text: The file's text.
        plain: Records of the file if its backslashes are text.
    """
    if "\\" not in text or not plain:
        return None
    width = len(plain[0].fields)
    used = set(_LETTER.findall(text))
    empty = sum(field == _EMPTY for _, fields in plain for field in fields)
    # A program that writes escapes doubles every other backslash, so an unknown escape shows that there are none.
    known = used <= _KNOWN | (set("Nbfv") if empty else set()) and not text.endswith("\\")
    protected = ("\t" in used or "\n" in used) and any(len(fields) != width for _, fields in plain)
    if protected:
        records = _parse(text, letters=False)  # such a program writes no \\t, and \\tau is text
        if all(len(fields) == width for _, fields in records):
            logger.warning(
                "%s has backslashes before tabs or line breaks, so the backslash is not part of the text and the tab or line "
                "break does not end a field.",
                path,
            )
            return records
        return None
    if empty:
        escapes = known and bool(used - {"N"})
        logger.warning(
            "%s has %s cells \\N, which are read as empty%s.",
            *(path, f"{empty:,}"),
            "; \\t, \\n and \\\\ are read as a tab, a line break and a backslash" if escapes else "",
        )
        if escapes:
            return _parse(text, letters=True)
        return [Record(line, ["" if field == _EMPTY else field for field in fields]) for line, fields in plain]
    if known and used & set("tn\\") and not used & set("\t\n"):
        first = next(line for line, fields in plain if any(_LETTER.search(field) for field in fields))
        logger.warning(
            "%s line %s has a backslash, and every backslash of the file could be that of \\t, \\n or \\\\. They are read as "
            "text. If they stand for tabs, line breaks and backslashes, save the file as .csv or .jsonl.",
            *(path, first),
        )
    return None


def _parse(text: str, *, letters: bool) -> list[Record]:
    r"""Read records with escapes. ``letters`` tells if ``\t`` and ``\n`` are escapes too, and not only a tab after a backslash."""
    records: list[Record] = []
    fields: list[str] = []
    parts: list[str] = []
    line = start = 1
    begin = 0
    for piece in [*_PIECE.finditer(text), None]:
        if piece is not None and piece["end"] is None:
            escaped = piece["escaped"]
            if escaped is None:
                parts.append(piece[0])
            elif escaped in '\t\n\\"':
                parts.append(escaped)
            elif letters and escaped != "N":
                parts.append(_CHARACTERS.get(escaped, escaped))
            else:
                parts.append(piece[0])
            line += escaped == "\n"
            continue
        end = len(text) if piece is None else piece.start()
        fields.append("" if text[begin:end].rstrip("\r") == _EMPTY else "".join(parts))
        parts, begin = [], end + 1
        if piece is None or piece[0] == "\n":
            fields[-1] = fields[-1].removesuffix("\r")
            if fields != [""]:
                records.append(Record(start, fields))
            line += 1
            fields, start = [], line
    return records
