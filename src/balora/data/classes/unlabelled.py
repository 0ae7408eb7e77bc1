"""Leave out the rows without a label, if ``data.unlabelled`` asks for it."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from balora.config.sections import DataConfig
from balora.data.classes.labels import LabelSet, is_mark, label_key, placeholders
from balora.data.columns import label_of, score_of
from balora.data.files.tables import Row, Table, shorten
from balora.data.values import MissingLabel, RowProblem
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_SHOWN = 3
_EMPTY = "empty"
_DOUBTFUL = {"-1", "0", "1"}


def leave_out_unlabelled(sources: Sequence[tuple[DataConfig, Table]]) -> list[Table]:
    """Return the tables without the rows that have no label, and say once how many were left out.

    A row has no label if its cell is empty or holds a mark such as ``-``, ``nan`` or ``-1`` beside 0, 1, and so on. A mark that
    the config or the source names as a class is a label.

    Args:
        sources: Sections of the config with their tables. The first one has the training rows.

    Raises:
        BALoraError: No row of a table has a label.
    """
    labels = _known_labels(*sources[0])
    kept, said = [], []
    for data, table in sources:
        marks = [_mark(row, data, table, labels) for row in table.rows]
        found = Counter(mark for mark in marks if mark is not None)
        if table.rows and found.total() == len(table.rows):
            raise BALoraError(
                f"No row of {table.name} has a label ({_counts(found)}), so data.unlabelled: leave_out leaves none. Give rows "
                "with labels, or remove this source."
            )
        if found:
            said.append(f"{found.total():,} of {len(table.rows):,} rows of {table.name} ({_counts(found)})")
            table = table.take([number for number, mark in enumerate(marks) if mark is None])
        kept.append(table)
    if said:
        logger.warning("Rows without a label are left out (data.unlabelled: leave_out): %s.", "; ".join(said))
    return kept


def _known_labels(data: DataConfig, train: Table) -> LabelSet | None:
    """Return the classes that the config, the source or the training rows name; None if the task has scores."""
    if data.form != "labelled":
        return None
    names = data.labels or train.class_names.get(str(data.label))
    if names:
        return LabelSet(names)
    values = []
    for row in train.rows:
        try:
            values.append(label_of(row, str(data.label)))
        except RowProblem:
            continue  # an empty cell; every other problem is reported when the rows are converted
    keys = {label_key(value) for value in values}
    marks = {key for key in placeholders(values) if is_mark(key)}
    if keys - marks == _DOUBTFUL:  # three classes or two: the user says that there are rows without a label
        marks.add("-1")
    return LabelSet(tuple(sorted(keys - marks)))


def _mark(row: Row, data: DataConfig, table: Table, labels: LabelSet | None) -> str | None:
    """Return what a row has in place of a label; None if it has a label, or a problem that is reported later."""
    try:
        if labels is None:
            score_of(row, str(data.score))
            return None
        value: Any = label_of(row, str(data.label))
    except MissingLabel as missing:
        return _EMPTY if missing.value is None else repr(missing.value)
    except RowProblem:
        return None
    labels = dataclasses.replace(labels, positions=data.label in table.class_names)
    return repr(value) if is_mark(label_key(value)) and labels.id_of(value) is None else None


def _counts(found: Counter[str]) -> str:
    shown = ", ".join(f"{shorten(mark)}: {count:,}" for mark, count in found.most_common(_SHOWN))
    return shown + (", ..." if len(found) > _SHOWN else "")
