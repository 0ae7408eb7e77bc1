"""`load_examples`: what a config's ``data`` section names, read, checked and brought into one form."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from typing import Any

from datasets import Dataset, Features, List, Value

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.columns import check_columns, convert, given_labels, outer_column, used_columns
from balora.data.labels import LabelSet, find_labels, label_key
from balora.data.perturbations import apply_conditions
from balora.data.readers import BadRows, Row, Table
from balora.data.sources import read_tables
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_TEXT, _MESSAGE = Value("string"), {"role": Value("string"), "content": Value("string")}
_FEATURES: dict[Form, dict[str, Any]] = {
    "pair": {"prompt": _TEXT, "input": _TEXT, "response": _TEXT},
    "messages": {"messages": List(_MESSAGE), "place": _TEXT},
    "text": {"text": _TEXT},
    "labelled": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("int64")},
    "scored": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("float32")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Checked examples, not yet tokenized."""

    form: Form
    """``pair`` (columns prompt, input, response), ``messages`` (messages, place), ``text`` (text), ``labelled`` or
    ``scored`` (text, for pairs text_pair, labels). Classes and scores said in words are a ``pair``."""
    train: Dataset
    eval: Dataset | None
    label_names: tuple[str, ...] | None
    """Classes in the order of their numbers, for classification; where classes are said, the words for them."""
    train_source: str
    """Where the training rows are from, in words."""
    eval_source: str | None
    conditions: dict[str, Any] | None
    """What the data conditions did to the training rows, in numbers; None where there are none."""
    digest: str
    """SHA-256 over all examples in order: the same data give the same digest, wherever they lie."""

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes as transformers' configs hold them."""
        return None if self.label_names is None else dict(enumerate(self.label_names))

    @property
    def num_labels(self) -> int | None:
        """Number of outputs a classification head needs; 1 for regression, None for generation."""
        if self.form == "scored":
            return 1
        return len(self.label_names) if self.form == "labelled" and self.label_names else None


def load_examples(data: DataConfig, task: str, seed: int = 42) -> Examples:
    """Read and check the examples of a run.

    Args:
        data: The config's ``data`` section.
        task: generation, seq2seq, classification or regression.
        seed: Of the choice of evaluation rows, where ``data.eval`` is a share, and of the data conditions.

    Returns:
        Training examples in the order of their source and under the conditions asked for, and evaluation examples as they are.

    Raises:
        BALoraError: A source is missing, broken or empty; a column is missing (the others are named); rows cannot be
            used (the first three are named by file and line, the rest counted).
    """
    train, held_out = _read(data, seed)
    further = [(part, _read(part, seed)[0]) for part in data.sources[1:]]
    labels = _labels(train, data) if data.form == "labelled" else None
    if labels is not None:
        for part, table in ((data, train), *further):
            _check_order(labels, table, part)
    words = task == "seq2seq" and data.form != "pair"
    form: Form = "pair" if words else data.form
    bad = BadRows()
    rows = [convert(table, data, labels, bad, words=words) for table in (train, held_out) if table is not None]
    for part, table in further:
        rows[0] += convert(table, part, labels, bad, words=words)
    bad.raise_if_any()
    if held_out is not None:
        _warn_of_overlap(*rows)
    rows[0], conditions = apply_conditions(rows[0], data, labels, seed)
    return Examples(
        form=form,
        train=_dataset(rows[0], form),
        eval=_dataset(rows[1], form) if held_out is not None else None,
        label_names=labels.names if labels else None,
        train_source=" + ".join([train.name, *(table.name for _, table in further)]),
        eval_source=held_out.name if held_out is not None else None,
        conditions=conditions,
        digest=_digest(rows),
    )


def _read(data: DataConfig, seed: int) -> tuple[Table, Table | None]:
    """The tables that one section names, their columns checked."""
    named = set(used_columns(data).values())
    train, held_out = read_tables(data, named | {outer_column(column) for column in named}, seed)
    for table in (train, held_out):
        if table is not None:
            check_columns(table, data)
    return train, held_out


def _labels(train: Table, data: DataConfig) -> LabelSet:
    """The classes as given, as the source declares them, or as the training rows have them."""
    assert data.label is not None
    names = data.labels or train.class_names.get(data.label)
    if names:
        return LabelSet(names)
    values, bad = given_labels(train, data)
    if len({label_key(value) for value in values}) < 2:
        bad.raise_if_any()  # the rows without a label are why there are no two classes
    return find_labels(values, data.label, train.name)


def _check_order(labels: LabelSet, table: Table, data: DataConfig) -> None:
    """Refuse a source that numbers the same classes in another order: its numbers would mean other classes here."""
    declared = table.class_names.get(str(data.label), labels.names)
    if declared != labels.names and sorted(declared) == sorted(labels.names):
        raise BALoraError(
            f"{table.name} numbers its classes in the order {', '.join(declared)}, and here they are "
            f"{', '.join(labels.names)}; give them in its order in data.labels."
        )


def _dataset(rows: list[Row], form: Form) -> Dataset:
    columns = {name: kind for name, kind in _FEATURES[form].items() if name in rows[0]}
    return Dataset.from_list(rows, features=Features(columns))


def _warn_of_overlap(train: list[Row], held_out: list[Row]) -> None:
    """An evaluation on what was trained on says nothing; slices of one file overlap easily."""
    seen = {_content(row) for row in train}
    both = sum(_content(row) in seen for row in held_out)
    if both:
        logger.warning(
            "%s of %s evaluation rows are also among the training rows; their scores are not those of new data.",
            f"{both:,}",
            f"{len(held_out):,}",
        )


def _digest(parts: list[list[Row]]) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            digest.update(_content(row).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()


def _content(row: Row) -> str:
    """What a row says, as text. Its place is left out: a copy in another file is the same example."""
    said = {name: value for name, value in row.items() if name != "place"}
    return json.dumps(said, sort_keys=True, ensure_ascii=False)
