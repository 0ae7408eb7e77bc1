"""Sources of rows that the ``data`` section can name: files, folders and hub datasets, with their splits and slices.

Split expressions have the syntax of `datasets`: ``train``, ``train[:8000]``, ``train[10%:]``, ``[:8000]``.
"""

import random
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import datasets

from balora.config.sections import DataConfig
from balora.data.hub import load_hub_dataset, looks_local
from balora.data.readers import SUFFIXES, Table, join, read_table, row_locations
from balora.errors import BALoraError, suggest_path

# Split names of `datasets`, by the names that files use.
_ALIASES = {
    **dict.fromkeys(("validation", "dev", "valid", "val", "eval"), "validation"),
    "dev_matched": "validation_matched",
    "dev_mismatched": "validation_mismatched",
}
_SLICE = re.compile(r"(?P<name>.*?)(?P<slice>\[[^\[\]]*\])?")


class Source(Protocol):
    """Data with one or more splits."""

    name: str

    def read(self, split: str) -> Table:
        """Read a split expression such as ``train[:8000]``."""


def open_source(name: str, configuration: str | None = None, columns: set[str] | None = None) -> Source:
    """Open a file, a folder of files, or a hub dataset with its configuration and the columns to read.

    Raises:
        BALoraError: There is no such file or folder, or a configuration is given for a local path.
    """
    if not looks_local(name, SUFFIXES):
        return HubSource(name, configuration, columns or set())
    path = Path(name).expanduser()
    if configuration is not None:
        raise BALoraError(
            f"data.name {configuration!r} is the configuration of a hub dataset, but {name} is a local path; leave it out."
        )
    if path.is_dir():
        return FilesSource(name, _files_by_split(path))
    if not path.exists() and path.suffix.lower() not in SUFFIXES:
        raise BALoraError(f"There is no file or folder {name} (data.train).{suggest_path(path)}")
    return FilesSource(name, {"train": [path]})


class FilesSource:
    """Local files, one or more per split."""

    def __init__(self, name: str, files: Mapping[str, list[Path]]) -> None:
        self.name = name
        self._files = files
        self._tables: dict[str, Table] = {}

    def read(self, split: str) -> Table:
        """Read a split expression; the default name is ``train``."""
        split = f"train{split}" if split.startswith("[") else split
        match = _SLICE.fullmatch(split)
        if match and match["name"] in _ALIASES:
            split = _ALIASES[match["name"]] + (match["slice"] or "")
        requested = {part.partition("[")[0].strip() for part in split.split("+")}
        lengths = {name: len(self.table(name).rows) for name in self._files if name in requested}
        try:
            parts = datasets.ReadInstruction.from_spec(split).to_absolute(lengths)
        except (ValueError, AssertionError) as error:
            raise BALoraError(
                f"{self.name} has no split {split!r}; it has {', '.join(self._files)}, and a slice is written "
                "train[:8000]."
            ) from error
        table = join([self.table(part.splitname).take(range(part.from_, part.to)) for part in parts])
        if not table.rows:
            raise BALoraError(f"The split {split} of {self.name} has no rows.")
        return table

    def table(self, name: str) -> Table:
        """Return all rows of a split. The files are read once."""
        if name not in self._tables:
            self._tables[name] = join([read_table(path) for path in self._files[name]])
        return self._tables[name]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._files)


class HubSource:
    """A dataset on the hub."""

    def __init__(self, name: str, configuration: str | None, columns: set[str]) -> None:
        self.name = name
        self._configuration = configuration
        self._columns = columns

    def read(self, split: str) -> Table:
        """Load a split expression."""
        split = f"train{split}" if split.startswith("[") else split
        dataset = load_hub_dataset(self.name, self._configuration, split)
        if not len(dataset):
            raise BALoraError(f"The split {split} of {self.name} has no rows.")
        names = tuple(dataset.column_names)
        wanted = [name for name in names if name in self._columns]
        classes = {c: tuple(f.names) for c, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
        rows = dataset.select_columns(wanted).to_list() if wanted else [{}] * len(dataset)
        title = f"{self.name} ({split})"
        return Table(title, names, rows, row_locations(title, len(rows)), classes)


def read_tables(data: DataConfig, columns: set[str], seed: int) -> tuple[Table, Table | None]:
    """Read the training rows, in their order, and the evaluation rows that a ``data`` section names.

    Raises:
        BALoraError: A file, split or hub dataset is missing, broken or empty.
    """
    source = open_source(data.train, data.name, columns)
    train = source.read(data.split or "train")
    if data.eval is None:
        return train, None
    if isinstance(data.eval, float):
        return _hold_out(train, data.eval, seed)
    match = _SLICE.fullmatch(data.eval)
    path, rows = (match["name"], match["slice"]) if match else (data.eval, None)
    if path.lower().endswith(SUFFIXES) or Path(path).expanduser().is_file():
        return train, FilesSource(path, {"train": [Path(path).expanduser()]}).read(rows or "train")
    try:
        return train, source.read(data.eval)
    except BALoraError as error:
        raise BALoraError(
            f"data.eval {data.eval!r} is not a fraction and not a file, and as a split: {error}"
        ) from error


def _hold_out(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    """Divide rows at random into training and evaluation rows, at least one of each, both in their order."""
    total = len(table.rows)
    if total < 2:
        raise BALoraError(
            f"{table.name} has one row, which cannot be divided between training and evaluation (data.eval)."
        )
    size = min(max(1, round(fraction * total)), total - 1)
    held_out = set(random.Random(seed).sample(range(total), size))
    return table.take([i for i in range(total) if i not in held_out]), table.take(sorted(held_out))


def _files_by_split(folder: Path) -> dict[str, list[Path]]:
    """Find the data files of a folder: ``train.tsv``, ``dev.tsv``, or shards such as ``train-00000-of-00002.parquet``."""
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if not files:
        raise BALoraError(f"The folder {folder} holds no data file ({', '.join(SUFFIXES)}).")
    found: dict[str, list[Path]] = {}
    for path in files:
        name = re.sub(r"[-_.]\d+.*$", "", path.stem)
        found.setdefault(_ALIASES.get(name, name), []).append(path)
    if len(files) == 1 and "train" not in found:
        return {"train": files}
    for name, paths in found.items():
        complete = [p.name for p in paths if p.stem == name or p.stem in _ALIASES]
        if len(complete) > 1 or len({p.suffix for p in paths}) > 1:
            raise BALoraError(
                f"The folder {folder} holds several files for the split {name}: {', '.join(p.name for p in paths)}. "
                "Give the path of one file."
            )
    return found
