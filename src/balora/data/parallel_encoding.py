"""Examples to tokens in batches, by one process or several, written to Arrow as they come."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets

from balora.data.files.arrow_writer import BATCH, ArrowWriter

_LEAST = 5_000
"""Rows from which a further process is worth its start."""


@dataclasses.dataclass(frozen=True)
class Limit:
    """Maximum number of tokens of an example or of a part of it."""

    tokens: int
    origin: str
    """Source of the number, for messages: a config key, the tokenizer or the model."""
    of: str = "rows"
    """Part that is cut, for messages: rows, prompts or responses."""


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One example as tokens."""

    input_ids: list[int]
    labels: list[int] | int | float
    needed: int = 1
    """Number of tokens up to the first learnt one, inclusive; 0 if there is no learnt token."""
    total: int = 1
    """Number of tokens before cutting."""
    cut: tuple[Limit, ...] = ()
    """Limits at which the example was cut. Prompt and response of a seq2seq example have one each."""
    token_type_ids: list[int] | None = None


Batch = dict[str, list[Any]]
Encoder = Callable[[Batch], Iterator[Encoded]]


class Notes:
    """Sentences about what the encoders found. ``notes("training")`` returns them."""

    def __init__(self, *sources: Any) -> None:
        """Take objects with ``notes``, ``counts`` and ``add``."""
        self._sources = sources

    def __call__(self, part: str) -> list[str]:
        """Return the sentences about a part of the data."""
        return [note for source in self._sources for note in source.notes(part)]

    def counts(self) -> list[Any]:
        """Return what was counted, to send it to another process."""
        return [source.counts() for source in self._sources]

    def add(self, counts: Sequence[Any]) -> None:
        """Add what another process counted."""
        for source, counted in zip(self._sources, counts, strict=True):
            source.add(counted)


@dataclasses.dataclass
class Outcome:
    """Rows that were cut or left out."""

    rows: int = 0
    left_out: int = 0
    unlearnable: int = 0
    """Rows, of those that were left out, without a token to learn at any length."""
    shortest: tuple[int, int] | None = None
    """Smallest ``needed`` of the other rows that were left out, and the ``total`` of that row."""
    cut: Counter[Limit] = dataclasses.field(default_factory=Counter)

    def leave_out(self, row: Encoded) -> None:
        """Count a row that is left out."""
        self.left_out += 1
        if not row.needed:
            self.unlearnable += 1
        elif self.shortest is None or row.needed < self.shortest[0]:
            self.shortest = row.needed, row.total

    def add(self, other: Outcome) -> None:
        """Add the counts of another part of the rows."""
        self.rows += other.rows
        self.left_out += other.left_out
        self.unlearnable += other.unlearnable
        self.shortest = min(filter(None, (self.shortest, other.shortest)), default=None)
        self.cut.update(other.cut)


MakeEncoder = Callable[[], tuple[Encoder, Notes]]


def encode_rows(
    make: MakeEncoder, dataset: Dataset, limit: Limit, path: Path | None, processes: int
) -> tuple[list[Path], Dataset | None, Outcome, Notes]:
    """Encode a dataset.

    Args:
        make: Function that makes the encoder; every process calls it once. Of several processes it must be picklable.
        dataset: Examples.
        limit: Maximum number of tokens of an example.
        path: Beginning of the paths of the files to write; None: keep the tokens in memory, with one process.
        processes: Number of processes.

    Returns:
        The files, the rows (None if all were left out), counts of the rows and the notes.
    """
    count = 1 if path is None else max(1, min(processes, len(dataset) // _LEAST))
    bounds = [len(dataset) * part // count for part in range(count + 1)]
    files = [None if path is None else path.with_name(f"{path.name}-{part}.arrow") for part in range(count)]
    if count == 1:
        encode, notes = make()
        rows, outcome = _encode_range(encode, dataset, range(len(dataset)), limit, files[0])
        return [f for f in files if f is not None and rows is not None], rows, outcome, notes
    outcome, notes = Outcome(), make()[1]
    # Forked, the processes need neither time nor memory for the libraries; a test of CUDA's state would itself start CUDA.
    forked = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    with concurrent.futures.ProcessPoolExecutor(
        count, multiprocessing.get_context(forked), initializer=_set_job, initargs=(make, dataset, limit)
    ) as pool:
        parts = [pool.submit(_work, range(a, b), file) for a, b, file in zip(bounds, bounds[1:], files, strict=False)]
        for part in parts:
            found, counts = part.result()
            outcome.add(found)
            notes.add(counts)
    written = [file for file in files if file is not None and file.exists()]
    parts_read = [Dataset.from_file(str(file)) for file in written]
    return written, concatenate_datasets(parts_read) if parts_read else None, outcome, notes


_job: tuple[MakeEncoder, Dataset, Limit] | None = None


def _set_job(make: MakeEncoder, dataset: Dataset, limit: Limit) -> None:
    global _job
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a forked process cannot use the threads of its parent
    _job = make, dataset, limit


def _work(numbers: range, path: Path | None) -> tuple[Outcome, list[Any]]:
    assert _job is not None
    make, dataset, limit = _job
    encode, notes = make()
    _, outcome = _encode_range(encode, dataset, numbers, limit, path)
    return outcome, notes.counts()


def _encode_range(
    encode: Encoder, dataset: Dataset, numbers: range, limit: Limit, path: Path | None
) -> tuple[Dataset | None, Outcome]:
    writer: ArrowWriter | None = None
    outcome = Outcome()
    for start in range(numbers.start, numbers.stop, BATCH):
        usable = []
        for row in encode(dataset[start : min(start + BATCH, numbers.stop)]):
            if row.needed and row.needed <= limit.tokens:
                usable.append(row)
                if row.cut:
                    outcome.cut.update(row.cut)
            else:
                outcome.leave_out(row)
            outcome.rows += 1
        if usable:
            if writer is None:
                writer = ArrowWriter(_features(usable[0]), path)
            columns = {
                name: _column([getattr(row, name) for row in usable], kind) for name, kind in writer.kinds.items()
            }
            writer.write(columns, len(usable))
    return (None if writer is None else writer.close()), outcome


def _features(row: Encoded) -> Features:
    kinds: dict[str, Any] = {"input_ids": List(Value("int32"))}
    if row.token_type_ids is not None:
        kinds["token_type_ids"] = List(Value("int8"))
    number = Value("float32" if isinstance(row.labels, float) else "int64")
    kinds["labels"] = List(Value("int32")) if isinstance(row.labels, list) else number
    return Features(kinds)


def _column(values: list[Any], kind: pa.DataType) -> Any:
    """Return lists of tokens as one Arrow array, which is quicker than Arrow's own conversion of nested lists."""
    if not isinstance(values[0], list):
        return values
    kind = kind.value_type
    offsets = np.zeros(len(values) + 1, np.int32)
    np.cumsum([len(value) for value in values], out=offsets[1:])
    flat = pa.array(list(itertools.chain.from_iterable(values)), kind)
    return pa.ListArray.from_arrays(pa.array(offsets), flat)
