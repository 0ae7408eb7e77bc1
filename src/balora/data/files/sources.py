"""Sources of rows that the ``data`` section can name: files, folders and hub datasets, with their splits and slices.

Split expressions have the syntax of `datasets`: ``train``, ``train[:8000]``, ``train[10%:]``, ``[:8000]``.
"""

import glob
import logging
import random
import re
from array import array
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

import datasets
import pyarrow as pa

from balora.config.sections import DataConfig
from balora.data.files.folders import files_by_split, split_of
from balora.data.files.hub import load_hub_dataset, looks_local
from balora.data.files.lazy_rows import DatasetRows
from balora.data.files.readers import (
    ENDINGS,
    SPLIT_NAMES,
    EmptyFileError,
    data_suffix,
    is_data_file,
    read_splits,
    read_table,
)
from balora.data.files.tables import Row, Table, join, row_locations
from balora.errors import BALoraError, suggest_path

logger = logging.getLogger("balora")
_SLICE = re.compile(r"(?P<name>.*?)(?P<slice>\[[^\[\]]*\])?")


class Source(Protocol):
    """Data with one or more splits."""

    name: str

    def read(self, split: str) -> Table:
        """Read a split expression such as ``train[:8000]``."""


def open_source(name: str, configuration: str | None = None, columns: set[str] | None = None) -> Source:
    """Open local data or a hub dataset, with its configuration and the columns to read.

    Local data are a file, the files that a pattern such as ``data/*.jsonl`` matches, a folder of files, a cloned hub dataset,
    or a folder that `datasets.Dataset.save_to_disk` wrote.

    Raises:
        BALoraError: There is no such file or folder, or a local path has no configurations and one is given.
    """
    if "://" in name:
        raise BALoraError(
            f"{name} is an address (data.train); give a hub id, or download it and give the path of the file."
        )
    if not looks_local(name, ENDINGS):
        return HubSource(name, configuration, columns or set())
    path = Path(name).expanduser()
    if (path / "dataset_dict.json").is_file() or all(
        (path / f"{part}.json").is_file() for part in ("state", "dataset_info")
    ):
        return _open_saved(name, path, columns)
    if path.is_dir():
        return FilesSource(name, files_by_split(path, configuration))
    if configuration is not None:
        raise BALoraError(
            f"data.name {configuration!r} is the configuration of a hub dataset, but {name} is a local path; leave it out."
        )
    if not path.exists() and is_pattern(name):
        return _open_pattern(name, columns)
    if not path.exists() and not path.name.lower().endswith(ENDINGS):
        raise BALoraError(f"There is no file or folder {name} (data.train).{suggest_path(path)}")
    if path.is_file() and data_suffix(path.name) in (".json", ".jsonl", ".ndjson"):
        tables = read_splits(path)
        return TablesSource(name, {split: partial(_given, table) for split, table in tables.items()}, [path])
    return FilesSource(name, {"train": [path]})


def open_sources(names: Sequence[str], configuration: str | None = None, columns: set[str] | None = None) -> Source:
    """Open one or several sources as `open_source` does; the rows of several are joined, in their order."""
    sources = [open_source(name, configuration, columns) for name in names]
    return sources[0] if len(sources) == 1 else JoinedSource(sources)


def is_pattern(name: str) -> bool:
    """Decide if a path is a pattern for several files, such as ``data/*.jsonl``."""
    return "*" in name or "?" in name or (glob.has_magic(name) and name.lower().endswith(ENDINGS))


class TablesSource:
    """Local rows by split. Each table is read when it is needed, once."""

    def __init__(self, name: str, readers: Mapping[str, Callable[[], Table]], paths: Sequence[Path] = ()) -> None:
        self.name = name
        self.paths = paths
        self._readers = readers
        self._tables: dict[str, Table] = {}

    def read(self, split: str) -> Table:
        """Read a split expression; the default name is ``train``."""
        split = _full(split)
        lengths = {name: len(self.table(name).rows) for name in self._readers if name in _names(split)}
        listed = len(lengths) == 0 and split.startswith("train")
        hint = "; to train on several of them, list their files in data.train" if listed else ""
        wrong = (
            f"{self.name} has no split {split!r}; it has {', '.join(self._readers)}, and a slice is written "
            f"train[:8000]{hint}."
        )
        return _select(self.name, split, lengths, self.table, wrong)

    def table(self, name: str) -> Table:
        """Return all rows of a split."""
        if name not in self._tables:
            self._tables[name] = self._readers[name]()
        return self._tables[name]

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(self._readers)


class FilesSource(TablesSource):
    """Local files, one or more per split."""

    def __init__(self, name: str, files: Mapping[str, list[Path]]) -> None:
        readers = {split: partial(_read_files, paths) for split, paths in files.items()}
        super().__init__(name, readers, [path for paths in files.values() for path in paths])


class JoinedSource:
    """Several sources whose rows are joined. Splits other than ``train`` come from those that have them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.name = " + ".join(source.name for source in sources)
        self._sources = sources
        self.paths: list[Path] = [
            path for source in sources if isinstance(source, TablesSource | JoinedSource) for path in source.paths
        ]
        twice = [name for name, count in Counter(str(path.resolve()) for path in self.paths).items() if count > 1]
        if twice:
            logger.warning("data.train names %s more than once: the rows are read each time.", ", ".join(twice[:10]))
        self._tables: dict[str, Table] = {}

    def read(self, split: str) -> Table:
        """Read a split expression; a slice is one of the joined rows."""
        split = _full(split)
        lengths = {name: len(self._table(name).rows) for name in _names(split)}
        wrong = f"{split!r} is not a split; a slice is written train[:8000]."
        return _select(self.name, split, lengths, self._table, wrong)

    def _table(self, name: str) -> Table:
        if name not in self._tables:
            sources = [s for s in self._sources if not isinstance(s, TablesSource) or name in ("train", *s.splits)]
            self._tables[name] = join([source.read(name) for source in sources or self._sources])
        return self._tables[name]


def _full(split: str) -> str:
    """Complete a split expression: ``[:8]`` means ``train[:8]``, and ``dev`` means ``validation``."""
    split = f"train{split}" if split.startswith("[") else split
    match = _SLICE.fullmatch(split)
    return SPLIT_NAMES[match["name"]] + (match["slice"] or "") if match and match["name"] in SPLIT_NAMES else split


def _names(split: str) -> dict[str, None]:
    """Return the names of the splits in an expression, in their order."""
    return dict.fromkeys(part.partition("[")[0].strip() for part in split.split("+"))


def _select(name: str, split: str, lengths: Mapping[str, int], table: Callable[[str], Table], wrong: str) -> Table:
    """Return the rows of a split expression. ``wrong`` is the message for one that is not valid."""
    try:
        if any(part not in lengths for part in _names(split)):
            raise ValueError(split)
        parts = datasets.ReadInstruction.from_spec(split).to_absolute(dict(lengths))
    except (ValueError, AssertionError) as error:
        raise BALoraError(wrong) from error
    selected = join([table(part.splitname).take(range(part.from_, part.to)) for part in parts])
    if not selected.rows:
        raise BALoraError(f"The split {split} of {name} has no rows.")
    return selected


def _given(table: Table) -> Table:
    return table


def _read_files(paths: Sequence[Path]) -> Table:
    """Read files as one table. Of several, some may be empty: Spark writes a file for each of its tasks."""
    tables = []
    for path in paths:
        try:
            tables.append(read_table(path))
        except EmptyFileError:
            if path == paths[-1] and not tables:
                raise
    return join(tables)


def _open_pattern(name: str, columns: set[str] | None) -> Source:
    """Open the files, or else the folders, that a pattern matches."""
    paths = [Path(found) for found in sorted(glob.glob(str(Path(name).expanduser()), recursive=True))]
    files = [path for path in paths if path.is_file()]
    if not paths:
        raise BALoraError(f"No file matches {name}.")
    if not files:
        return open_sources([str(path) for path in paths], columns=columns)
    used = [path for path in files if is_data_file(path)] or files
    if len(used) < len(files):
        left_out = [path.name for path in files if path not in used]
        logger.warning("%s also matches %s, which hold no rows and are left out.", name, ", ".join(left_out[:10]))
    other = [path.name for path in used if split_of(path) in ("validation", "test")]
    if other and len(other) < len(used):
        logger.warning(
            "%s also matches %s: these rows are read as well, although the names are those of rows to evaluate on. To keep "
            "the splits apart, give the folder or name the files.",
            *(name, ", ".join(other[:10])),
        )
    return FilesSource(name, {"train": used})


def _open_saved(name: str, folder: Path, columns: set[str] | None) -> Source:
    """Open a folder that ``save_to_disk`` of `datasets` wrote."""
    try:
        saved = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, TypeError, KeyError, pa.ArrowException) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        raise BALoraError(f"{name} was saved with save_to_disk and cannot be read: {reason}.") from error
    parts = {str(split): part for split, part in saved.items()} if isinstance(saved, dict) else {"train": saved}
    title = (lambda split: f"{name} ({split})") if isinstance(saved, dict) else (lambda _: name)
    readers = {split: partial(_table_of, part, title(split), columns) for split, part in parts.items()}
    return TablesSource(name, readers, [folder])


def _table_of(dataset: datasets.Dataset, title: str, columns: set[str] | None) -> Table:
    """Convert the given columns of a dataset, or all if None, to a table."""
    names = tuple(dataset.column_names)
    wanted = [name for name in names if columns is None or name in columns]
    classes = {c: tuple(f.names) for c, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    rows: Sequence[Row] = DatasetRows(dataset.select_columns(wanted)) if wanted else [{}] * len(dataset)
    return Table(title, names, rows, row_locations(title, len(rows)), classes)


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
        return _table_of(dataset, f"{self.name} ({split})", self._columns)


def read_tables(data: DataConfig, columns: set[str], seed: int) -> tuple[Table, Table | None]:
    """Read the training rows, in their order, and the evaluation rows that a ``data`` section names.

    Raises:
        BALoraError: A file, split or hub dataset is missing, broken or empty.
    """
    source = open_sources(data.train_sources, data.name, columns)
    train = source.read(data.split or "train")
    if data.eval is None:
        return train, None
    if isinstance(data.eval, float):
        return _hold_out(train, data.eval, seed)
    match = _SLICE.fullmatch(data.eval)
    path, rows = (match["name"], match["slice"]) if match else (data.eval, None)
    local = Path(path).expanduser()
    if path.lower().endswith(ENDINGS) or local.is_file() or is_pattern(path) or ("/" in path and local.is_dir()):
        return train, _only_split(open_source(path, columns=columns), rows)
    try:
        return train, source.read(data.eval)
    except BALoraError as error:
        if local.is_dir():
            return train, _only_split(open_source(path, columns=columns), rows)
        raise BALoraError(
            f"data.eval {data.eval!r} is not a fraction and not a file, and as a split: {error}"
        ) from error


def _only_split(source: Source, rows: str | None) -> Table:
    """Read the rows of a source for evaluation that has one split."""
    splits = source.splits if isinstance(source, TablesSource) else ("train",)
    if len(splits) > 1:
        raise BALoraError(
            f"data.eval: {source.name} has the splits {', '.join(splits)}; give a file with the rows of one. A split of "
            "data.train is written without a path, such as test."
        )
    return source.read(splits[0] + (rows or ""))


def _hold_out(table: Table, fraction: float, seed: int) -> tuple[Table, Table]:
    """Divide rows at random into training and evaluation rows, at least one of each, both in their order."""
    total = len(table.rows)
    if total < 2:
        raise BALoraError(
            f"{table.name} has one row, which cannot be divided between training and evaluation (data.eval)."
        )
    size = min(max(1, round(fraction * total)), total - 1)
    held_out = set(random.Random(seed).sample(range(total), size))
    rest = array("q", (i for i in range(total) if i not in held_out))
    return table.take(rest), table.take(sorted(held_out))
