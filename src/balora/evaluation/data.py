"""Read the rows of a task from a local file or directory, or from the hub."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from balora.data.files.hub import load_hub_dataset, looks_local
from balora.data.files.readers import ENDINGS
from balora.data.files.sources import TablesSource, open_source
from balora.data.files.tables import Row
from balora.errors import BALoraError, suggest
from balora.evaluation.problem_files import read_problem_files


@dataclasses.dataclass(frozen=True)
class HubDataset:
    """Dataset on the hub that a task reads by default."""

    hub_id: str
    configurations: tuple[str | None, ...] = (None,)
    """Configurations to read; their rows are joined."""
    splits: tuple[str, ...] = ("test",)
    """Names of the split in a local directory; the first name is the split on the hub."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows of a task and the name of their source."""

    source: str
    rows: Sequence[Row]
    columns: tuple[str, ...]

    @property
    def digest(self) -> str:
        """SHA-256 of the rows in order. It does not depend on where the rows are stored."""
        digest = hashlib.sha256()
        for row in self.rows:
            text = json.dumps(row, sort_keys=True, ensure_ascii=False, default=str)
            digest.update(text.encode("utf-8", "backslashreplace") + b"\n")  # a lone surrogate cannot be encoded
        return digest.hexdigest()

    def column(self, *names: str) -> str:
        """Return the first of several names that is a column, or raise BALoraError."""
        for name in names:
            if name in self.columns:
                return name
        raise BALoraError(
            f"{self.source} has no column {' or '.join(map(repr, names))}.{suggest(names[0], self.columns)} Its columns are "
            f"{', '.join(self.columns)}."
        )


def read_rows(location: str | None, default: HubDataset) -> Rows:
    """Read the rows of a task from the user's file, directory or hub id, or from the task's own dataset."""
    problems = None if location is None else read_problem_files(Path(location).expanduser(), default.splits)
    if location is not None and problems is not None:
        return Rows(location, problems, tuple(dict.fromkeys(column for row in problems for column in row)))
    if location is None or not looks_local(location, ENDINGS):
        return _read_hub(location or default.hub_id, default)
    source, splits = open_source(location), default.splits
    assert isinstance(source, TablesSource)
    # `open_source` calls the only split of a single file "train".
    names = {"validation" if split in ("dev", "validation") else split for split in splits}
    found = [split for split in source.splits if split in names or len(source.splits) == 1]
    if not found:
        what = "file" if Path(location).expanduser().is_file() else "directory"
        raise BALoraError(
            f"The {what} {location} has no rows for {' or '.join(splits)}; it has {', '.join(source.splits)}. Give the path "
            "of a file with them."
        )
    table = source.read(found[0])
    return Rows(table.name, table.rows, table.columns)


def _read_hub(name: str, default: HubDataset) -> Rows:
    split = default.splits[0]
    configurations = default.configurations if name == default.hub_id else (None,)
    datasets = [
        load_hub_dataset(name, configuration, split, key="--data TASK=FILE") for configuration in configurations
    ]
    rows = [row for dataset in datasets for row in dataset.to_list()]
    if not rows:
        raise BALoraError(f"{name} has no rows in its split {split}.")
    columns = dict.fromkeys(column for dataset in datasets for column in dataset.column_names)
    return Rows(f"{name} ({split})", rows, tuple(columns))
