"""Open compressed data files, and refuse those that unpack to far more than they hold.

The first bytes of a file decide, since downloads are often compressed or unpacked without a change of their names.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from balora.errors import BALoraError

if TYPE_CHECKING:
    import pyarrow

_PART = 1 << 20
_ALWAYS_ALLOWED = 64 << 20
"""Unpacked bytes that every file may have."""
_LARGEST_RATIO = 200
"""Unpacked bytes per byte of a larger file. Text and JSON reach 3 to 30, and a file of zeros 1,000 to 50,000."""
_VALUES_PER_BYTE = 1000
"""Values of a Parquet file per byte. A column that repeats one value has many."""


def start_of(path: Path, count: int) -> bytes:
    """Return the first bytes of a file, decompressed."""
    with _open(path) or path.open("rb") as file:
        return file.read(count)


def open_unpacked(path: Path) -> BinaryIO:
    """Open a file to read its bytes, decompressed if it is compressed (gzip, bzip2, xz, zstd).

    A compressed file is first unpacked once in parts that are not kept, so that its size is known before it is read whole.

    Raises:
        BALoraError: The file unpacks to more than 64 MiB and more than 200 times its size.
    """
    opened = _open(path)
    if opened is None:
        return path.open("rb")
    size, total = path.stat().st_size, 0
    with opened:
        while part := opened.read(_PART):
            total += len(part)
            if total > _allowed(size):
                raise BALoraError(_refusal(path, size) + "unpack the file and give the unpacked one.")
    return cast(BinaryIO, _open(path))


def read_parquet(path: Path, content: pyarrow.Buffer) -> pyarrow.Table:
    """Read a Parquet file, whose columns are compressed. ``path`` is for messages.

    Raises:
        BALoraError: The columns unpack to more than 64 MiB and more than 200 times the size of the file, or have more than
            1,000 values per byte.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    file = pq.ParquetFile(content)
    footer, size = file.metadata, content.size
    total = sum(footer.row_group(number).total_byte_size for number in range(footer.num_row_groups))
    values = footer.num_rows * max(1, footer.num_columns)
    many = values > max(_ALWAYS_ALLOWED, _VALUES_PER_BYTE * size)
    if not many and total <= _allowed(size):
        # A dictionary holds a repeated text once, so the footer does not count its repetitions.
        flat = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
        total = 0
        for batch in pq.ParquetFile(content, read_dictionary=flat).iter_batches():
            for column in batch.columns:
                if pa.types.is_dictionary(column.type):
                    total += pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
                else:
                    total += column.nbytes
            if total > _allowed(size):
                break
    if many or total > _allowed(size):
        raise BALoraError(_refusal(path, size) + "save them as .jsonl.")
    return file.read()


def _allowed(size: int) -> int:
    return max(_ALWAYS_ALLOWED, _LARGEST_RATIO * size)


def _refusal(path: Path, size: int) -> str:
    return (
        f"{path} has {size:,} bytes and unpacks to more than {_allowed(size):,}, which no usual file of examples does. If the "
        "rows are right, "
    )


def _open(path: Path) -> BinaryIO | None:
    """Open a compressed file; None if the file is not compressed."""
    with path.open("rb") as file:
        start = file.read(10)
    if start.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.open(path))
    if re.match(rb"BZh[1-9](1AY&SY|\x17rE8P\x90)", start):
        return cast(BinaryIO, bz2.open(path))
    if start.startswith(b"\xfd7zXZ\x00"):
        return cast(BinaryIO, lzma.open(path))
    if start.startswith(b"\x28\xb5\x2f\xfd"):
        import pyarrow as pa

        return cast(BinaryIO, io.BufferedReader(pa.CompressedInputStream(str(path), "zstd")))
    return None
