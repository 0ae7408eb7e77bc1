"""Rows that stay in their file or in Arrow until they are read, so that memory does not grow with the number of rows.

Each class is a sequence of rows as dictionaries. Iteration reads a few hundred rows at a time.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from balora.errors import BALoraError

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa

Row = dict[str, Any]
_BATCH = 500


class LazyRows(Sequence[Row]):
    """Base of the classes below: a subclass says how many rows there are, and reads those with given numbers."""

    def __len__(self) -> int:
        """Return the number of rows."""
        raise NotImplementedError

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Row: ...
    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...
    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        """Read one row, or a list of rows."""
        numbers = range(len(self))[index]
        return self.read([numbers])[0] if isinstance(numbers, int) else self.read(numbers)

    def __iter__(self) -> Iterator[Row]:
        """Read all rows in their order."""
        for start in range(0, len(self), _BATCH):
            yield from self.read(range(start, min(start + _BATCH, len(self))))

    def __eq__(self, other: object) -> bool:
        """Compare the rows with those of another sequence."""
        return isinstance(other, Sequence) and len(self) == len(other) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


class JsonLines(LazyRows):
    """Rows of an uncompressed file with one JSON object on each line."""

    def __init__(self, path: Path, starts: array[int], size: int) -> None:
        """Take the file, the position of the first byte of each row, and the size of the file in bytes."""
        self._path, self._starts, self._size = path, starts, size

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._starts)

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        rows = []
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) != self._size:
                    raise ValueError
                for number in numbers:
                    file.seek(self._starts[number])
                    rows.append(json.loads(file.readline().decode("utf-8-sig" if number == 0 else "utf-8")))
        except (OSError, ValueError) as error:
            raise BALoraError(
                f"{self._path} was changed while it was read. Start again when it is complete."
            ) from error
        return rows


class ArrowRows(LazyRows):
    """Rows of an Arrow table."""

    def __init__(self, table: pa.Table) -> None:
        """Take the table, which is not copied."""
        self._table = table

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._table.num_rows

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        if isinstance(numbers, range) and numbers.step == 1:
            return list(self._table.slice(numbers.start, len(numbers)).to_pylist())
        return list(self._table.take(list(numbers)).to_pylist())


class DatasetRows(LazyRows):
    """Rows of a dataset of the `datasets` library, as it stores them."""

    def __init__(self, dataset: datasets.Dataset) -> None:
        """Take the dataset, which is not copied."""
        self._dataset = dataset.with_format("arrow")

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._dataset)

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        is_run = isinstance(numbers, range) and numbers.step == 1
        table: Any = self._dataset[numbers.start : numbers.stop] if is_run else self._dataset[list(numbers)]  # type: ignore[attr-defined]
        return list(table.to_pylist())


class Picked(LazyRows):
    """Some rows of other rows, in any order; a row can occur more than once. Single rows can be replaced."""

    def __init__(self, rows: Sequence[Row], numbers: Sequence[int], replaced: dict[int, Row] | None = None) -> None:
        """Take the rows, the numbers of those to use, and by position the rows to use in place of them."""
        self._rows, self.numbers = rows, numbers if isinstance(numbers, range) else array("q", numbers)
        self.replaced = replaced or {}

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.numbers)

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        is_run = isinstance(numbers, range) and numbers.step == 1
        wanted = self.numbers[numbers.start : numbers.stop] if is_run else [self.numbers[n] for n in numbers]  # type: ignore[attr-defined]
        rows = self._rows.read(wanted) if isinstance(self._rows, LazyRows) else [self._rows[n] for n in wanted]
        if self.replaced:
            rows = [self.replaced.get(number, row) for number, row in zip(numbers, rows, strict=True)]
        return rows

    def pick(self, positions: Sequence[int]) -> Picked:
        """Return some of these rows, in the order of the positions."""
        replaced = (
            {to: self.replaced[at] for to, at in enumerate(positions) if at in self.replaced} if self.replaced else {}
        )
        return Picked(self._rows, [self.numbers[at] for at in positions], replaced)

    def with_replaced(self, replaced: dict[int, Row]) -> Picked:
        """Return these rows, with other rows at some positions."""
        return Picked(self._rows, self.numbers, {**self.replaced, **replaced})


class Joined(LazyRows):
    """The rows of several sequences, one after the other."""

    def __init__(self, parts: Sequence[Sequence[Row]]) -> None:
        """Take the sequences."""
        self._parts = [(part, len(part)) for part in parts]

    def __len__(self) -> int:
        """Return the number of rows."""
        return sum(count for _, count in self._parts)

    def __iter__(self) -> Iterator[Row]:
        """Read all rows in their order."""
        for part, _ in self._parts:
            yield from part

    def read(self, numbers: Sequence[int]) -> list[Row]:
        """Read the rows with these numbers, in their order."""
        return [self._one(number) for number in numbers]

    def _one(self, number: int) -> Row:
        for part, count in self._parts:
            if number < count:
                return part[number]
            number -= count
        raise IndexError(number)


class Locations(Sequence[str]):
    """Locations of rows for messages, such as ``train.jsonl line 3``. A text is made when it is needed."""

    def __init__(self, start: str, numbers: Sequence[int]) -> None:
        """Take the text before the number, and the number of each row."""
        self._start, self._numbers = start, numbers

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        """Return one location, or a list of them."""
        found = self._numbers[index]
        return f"{self._start} {found}" if isinstance(found, int) else [f"{self._start} {number}" for number in found]

    def __iter__(self) -> Iterator[str]:
        """Make all locations in their order."""
        return (f"{self._start} {number}" for number in self._numbers)

    def __eq__(self, other: object) -> bool:
        """Compare the locations with those of another sequence."""
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def take(self, indices: Sequence[int]) -> Locations:
        """Return the locations of some rows."""
        numbers: Any = self._numbers
        return Locations(self._start, array("q", [numbers[i] for i in indices]))
