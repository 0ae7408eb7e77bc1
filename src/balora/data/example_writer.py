"""Checked examples written to Arrow as they come, with their digest and, to find repeated rows, a hash of each."""

from __future__ import annotations

import hashlib
import itertools
import json
from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, List, Value

from balora.config.data_columns import Form
from balora.data.files.arrow_writer import BATCH, ArrowWriter
from balora.data.files.lazy_rows import DatasetRows, Row

_TEXT = Value("string")
_MESSAGE = {"role": _TEXT, "content": _TEXT}
_FEATURES: dict[Form, dict[str, Any]] = {
    "pair": {"prompt": _TEXT, "input": _TEXT, "response": _TEXT},
    "messages": {"messages": List(_MESSAGE), "context": _TEXT, "location": _TEXT},
    "text": {"text": _TEXT},
    "labelled": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("int64")},
    "scored": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("float64")},
}
_ENCODER = json.JSONEncoder(sort_keys=True, ensure_ascii=False)  # json.dumps would make one for each row
END_OF_PART = b"\n--\n"
"""Bytes between the parts in a digest."""


class ExampleWriter:
    """Writer of the examples of one part of the data: training or evaluation."""

    def __init__(self, form: Form, path: Path | None, digest: Any, *, hashed: bool = False) -> None:
        """Begin a part.

        Args:
            form: Form of the examples.
            path: File to write; None: keep the examples in memory.
            digest: Object of `hashlib` that gets the content of the rows.
            hashed: Whether to keep a hash of each row.
        """
        self._features, self._path = dict(_FEATURES[form]), path
        self._writer = ArrowWriter(Features(self._features), path)
        self._used: set[str] = set()
        self._digest, self._hashed = digest, hashed
        self.hashes: array[int] = array("Q")
        """Hash of each row without its location, if they are kept."""

    def write(self, rows: Iterable[Row]) -> int:
        """Write rows and return their number."""
        before, iterator = self._writer.rows, iter(rows)
        while batch := list(itertools.islice(iterator, BATCH)):
            self._note(batch)
            if "messages" in self._features and any("more" in message for row in batch for message in row["messages"]):
                self._widen()
            self._write(batch)
        return self._writer.rows - before

    def close(self) -> Dataset:
        """Return the examples, without the columns that no example has."""
        dataset = self._writer.close()
        unused = [name for name in self._features if name not in self._used]
        return dataset.remove_columns(unused) if unused else dataset

    def _note(self, batch: Sequence[Row]) -> None:
        contents = [content(row) for row in batch]
        self._digest.update(b"".join(contents))
        if self._hashed:
            self.hashes.extend(int.from_bytes(hashlib.blake2b(c, digest_size=8).digest(), "little") for c in contents)

    def _write(self, batch: Sequence[Row]) -> None:
        for name in self._features:
            if name not in self._used and any(name in row for row in batch):
                self._used.add(name)
        self._writer.write({name: [row.get(name) for row in batch] for name in self._features}, len(batch))

    def _widen(self) -> None:
        """Add the further keys of messages to the columns, which costs that the rows so far are written again."""
        if "more" in self._features["messages"].feature:
            return
        self._features["messages"] = List({**_MESSAGE, "more": _TEXT})
        old, path = self._writer.close(), self._path
        self._path = path and path.with_name(f"{path.stem}-more.arrow")
        self._writer = ArrowWriter(Features(self._features), self._path)
        rows = iter(DatasetRows(old))
        while batch := list(itertools.islice(rows, BATCH)):
            self._write([present(row) for row in batch])
        if path is not None and self._path is not None:
            self._path.replace(path)  # the open file keeps its content under the new name
            self._path = path


def to_dataset(rows: Iterable[Row], form: Form) -> Dataset:
    """Return examples of a form as a dataset in memory, with the columns of that form."""
    writer = ExampleWriter(form, None, hashlib.sha256())
    writer.write(rows)
    return writer.close()


class DatasetExamples(DatasetRows):
    """Examples of a dataset, without the keys that a row does not have."""

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        return [present(row) for row in super().read(numbers)]


def present(row: Row) -> Row:
    """Return an example without the columns, and the keys of messages, that Arrow has filled with nulls."""
    kept = {name: value for name, value in row.items() if value is not None}
    if "messages" in kept:
        kept["messages"] = [{k: v for k, v in message.items() if v is not None} for message in kept["messages"]]
    return kept


def content(row: Row) -> bytes:
    """Write a row as text, without its location: a copy in another file is the same example."""
    kept = {name: value for name, value in row.items() if name != "location"}
    return _ENCODER.encode(kept).encode()
