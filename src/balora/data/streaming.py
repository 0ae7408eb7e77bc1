"""Streaming (``data.streaming``): training rows are read and tokenized while the model trains, so memory does not grow with them.

The rows are read in their order, again and again, and shuffled in a buffer. The order depends on the seed alone, so a resumed
run reads the stream anew up to its step and goes on exactly as it would have.
"""

from __future__ import annotations

import dataclasses
import glob
import hashlib
import itertools
import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from datasets import IterableDataset

from balora.config.data_columns import Form
from balora.config.run_config import RunConfig
from balora.config.sections import DataConfig
from balora.data.columns import check_columns, convert
from balora.data.example_writer import to_dataset
from balora.data.examples import Examples, load_examples
from balora.data.files.folders import files_by_split
from balora.data.files.hub import load_hub_dataset, looks_local
from balora.data.files.readers import ENDINGS, data_suffix, is_data_file, iterate_rows
from balora.data.files.tables import BadRows, Row, collect
from balora.data.tokenize import Encoder, Limit, Tokenized, limit_of, make_encoder
from balora.errors import BALoraError, suggest_path

logger = logging.getLogger("balora")
CHUNK = 1000
"""Rows that are checked and tokenized together. The first ones are checked before a run writes anything."""
_SUFFIXES = (".jsonl", ".ndjson", ".parquet")
_EDGE = 2**20
"""Bytes at the start and at the end of a file by which a resumed run recognises it, together with its size."""


@dataclasses.dataclass(frozen=True)
class Stream:
    """Training rows of a run that are read one by one."""

    data: DataConfig
    files: tuple[Path, ...]
    """Local files; none for a dataset on the hub."""
    seed: int

    @property
    def name(self) -> str:
        """Names of the sources."""
        return " + ".join(self.data.train_sources)

    def chunks(self) -> Iterator[list[Row]]:
        """Yield checked examples of one pass, up to `CHUNK` at a time, in the order of the rows.

        Raises:
            BALoraError: A row cannot be used, or a column is missing.
        """
        located = itertools.chain.from_iterable(map(iterate_rows, self.files)) if self.files else self._hub_rows()
        for number, chunk in enumerate(iter(lambda: list(itertools.islice(located, CHUNK)), [])):
            table = dataclasses.replace(collect(Path(self.name), chunk), name=self.name)
            if number == 0:  # all rows of a later chunk may lack a key that is empty
                check_columns(table, self.data)
            bad = BadRows()
            rows = list(convert(table, self.data, None, bad))
            bad.raise_if_any()
            yield rows

    def _hub_rows(self) -> Iterator[tuple[str, Row | str]]:
        split = self.data.split or "train"
        dataset = load_hub_dataset(self.name, self.data.name, split, streaming=True)
        for number, row in enumerate(dataset, 1):
            yield f"{self.name} ({split}) row {number}", row

    def first(self) -> list[Row]:
        """Return the first examples.

        Raises:
            BALoraError: There are none, or one cannot be used.
        """
        rows = next(self.chunks(), [])
        if not rows:
            raise BALoraError(f"{self.name} has no rows.")
        return rows

    def digest(self) -> str:
        """Return a digest by which a resumed run recognises its data: of each file the size, the start and the end.

        Reading everything would take long. For a dataset on the hub it is a digest of the first rows.
        """
        digest = hashlib.sha256()
        if not self.files:
            digest.update(repr(self.first()).encode())
        for path in self.files:
            size = path.stat().st_size
            digest.update(f"{size} ".encode())
            with path.open("rb") as file:
                digest.update(file.read(_EDGE))
                file.seek(max(0, size - _EDGE))
                digest.update(file.read(_EDGE))
        return digest.hexdigest()

    def tokenized(self, encoder: Callable[[], Encoder], limit: Limit) -> IterableDataset:
        """Return the endless stream of tokenized examples (``input_ids`` and ``labels``), shuffled in a buffer.

        Args:
            encoder: Function that makes the encoder of a batch of examples.
            limit: Maximum number of tokens of an example.
        """
        return IterableDataset.from_generator(
            lambda: shuffled(self._endless(encoder(), limit), self.data.shuffle_buffer, self.seed)
        )

    def _endless(self, encode: Encoder, limit: Limit) -> Iterator[Row]:
        for number in itertools.count(1):
            if number == 2:
                logger.warning("All rows of %s were read; they are read again.", self.name)
            used = 0
            for rows in self.chunks():
                for row in encode(as_batch(rows)):
                    if row.needed and row.needed <= limit.tokens:
                        used += 1
                        yield {"input_ids": row.input_ids, "labels": row.labels}
            if not used:
                raise BALoraError(f"No row of {self.name} has a token to learn within {limit.tokens} ({limit.origin}).")


def shuffled(rows: Iterator[Row], size: int, seed: int) -> Iterator[Row]:
    """Shuffle a stream in a buffer: each row that comes takes the place of a random one, which is yielded.

    Example:
        >>> sorted(itertools.islice(shuffled(iter(range(9)), 3, 0), 9)) == list(range(9))
        True
    """
    draw = random.Random(f"stream {seed}")
    buffer = list(itertools.islice(rows, size))
    for row in rows:
        at = draw.randrange(size)
        buffer[at], row = row, buffer[at]
        yield row
    draw.shuffle(buffer)
    yield from buffer


def as_batch(rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Return rows as columns; a key that a row lacks is None."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(key for row in rows for key in row)}


def open_stream(data: DataConfig, seed: int) -> Stream:
    """Open the training rows of a ``data`` section as a stream.

    Raises:
        BALoraError: A source is missing, or is of a kind that cannot be read row by row.
    """
    names = data.train_sources
    if any(not looks_local(name, ENDINGS) for name in names):
        if len(names) > 1:
            raise BALoraError("data.streaming reads one dataset of the hub, or local files; data.train names several.")
        return Stream(data, (), seed)
    files = tuple(path for name in names for path in _files(name, data.split or "train"))
    for path in files:
        if data_suffix(path.name) not in _SUFFIXES:
            raise BALoraError(
                f"{path} cannot be read row by row: data.streaming reads {', '.join(_SUFFIXES)}. Convert it, or leave "
                "data.streaming out."
            )
    return Stream(data, files, seed)


def _files(name: str, split: str) -> list[Path]:
    """Return the files of one source: a file, a pattern, or a folder with files for each split."""
    path = Path(name).expanduser()
    if path.is_dir():
        splits = files_by_split(path)
        if split not in splits:
            raise BALoraError(f"{name} has no split {split!r}; it has {', '.join(splits)}.")
        return splits[split]
    if path.is_file():
        return [path]
    found = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]
    found = [match for match in found if match.is_file() and is_data_file(match)]
    if not found:
        raise BALoraError(f"There is no file or folder {name} (data.train).{suggest_path(path)}")
    return found


def load_run_examples(data: DataConfig, task: str, seed: int, *, head: Sequence[str] | None = None) -> Examples:
    """Load the examples of a run (`load_examples`); of a stream the first training rows, and its evaluation rows."""
    if not data.streaming:
        return load_examples(data, task, seed, head=head)
    stream = open_stream(data, seed)
    evaluation = None
    if data.eval is not None:
        source = str(data.eval)
        is_file = looks_local(source, ENDINGS)
        update = {"train": source, "split": None} if is_file else {"split": source}
        alone = {"eval": None, "streaming": False, **update}
        evaluation = load_examples(data.model_copy(update=alone), task, seed)
    return Examples(
        form=data.form,
        train=to_dataset(stream.first(), data.form),
        eval=None if evaluation is None else evaluation.train,
        label_names=None,
        train_source=stream.name,
        eval_source=None if evaluation is None else evaluation.train_source,
        perturbations=None,
        digest=hashlib.sha256(f"{stream.digest()} {evaluation and evaluation.digest}".encode()).hexdigest(),
    )


def streamed(
    rows: Tokenized, config: RunConfig, form: Form, tokenizer: Any, target: Any, max_positions: int | None
) -> Tokenized:
    """Replace the first tokenized rows, by which a run was checked, by the whole stream.

    ``target`` is the tokenizer of the responses, if it is another one, and ``max_positions`` the model's number of positions.
    """
    data = config.data
    limit = limit_of(tokenizer, data.max_length, "data.max_length", max_positions)

    def encoder() -> Encoder:
        return make_encoder(form, tokenizer, data, config.task, limit, target, max_positions)[0]

    return dataclasses.replace(rows, train=open_stream(data, config.seed).tokenized(encoder, limit))
