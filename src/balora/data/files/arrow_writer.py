"""Rows written to Arrow in batches: to a file that is mapped into memory afterwards, or to a buffer if there is no file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset, Features

BATCH = 1000
"""Rows of a batch."""


class ArrowWriter:
    """Writer of a dataset. Memory does not grow with the number of rows if there is a file."""

    def __init__(self, features: Features, path: Path | None = None) -> None:
        """Begin a dataset with these columns, in a new file or, without a path, in memory."""
        self._path, self.rows = path, 0
        self._sink = pa.BufferOutputStream() if path is None else pa.OSFile(str(path), "wb")
        self._schema = features.arrow_schema
        self._stream = pa.ipc.new_stream(self._sink, self._schema)

    @property
    def kinds(self) -> dict[str, pa.DataType]:
        """Arrow's type of each column."""
        return {field.name: field.type for field in self._schema}

    def write(self, columns: dict[str, Any], count: int) -> None:
        """Write a batch of ``count`` rows: for each column a list of values, or an Arrow array."""
        arrays = [
            value if isinstance(value, pa.Array) else pa.array(value, type=field.type)
            for field, value in ((field, columns[field.name]) for field in self._schema)
        ]
        self._stream.write_batch(pa.record_batch(arrays, schema=self._schema))
        self.rows += count

    def close(self) -> Dataset:
        """Return the dataset."""
        self._stream.close()
        if self._path is None:
            return Dataset.from_buffer(self._sink.getvalue())
        self._sink.close()
        return Dataset.from_file(str(self._path))
