"""`load_examples`: the rows that a config's ``data`` section names, read, checked and converted to one form."""

import dataclasses
import hashlib
import json
import logging
import random
from collections.abc import Sequence
from typing import Any

from datasets import Dataset, Features, List, Value

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.columns import check_columns, convert, given_labels, outer_column, used_columns
from balora.data.head_classes import match_head, match_names
from balora.data.labels import LabelSet, doubts, find_labels, label_key, placeholders
from balora.data.messages import context_columns
from balora.data.perturbations import apply_perturbations
from balora.data.sources import read_tables
from balora.data.tables import BadRows, Row, Table
from balora.data.unlabelled import leave_out_unlabelled
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_LEAVE_OUT = " (data.unlabelled: leave_out does so for -1)"
_TEXT = Value("string")
_MESSAGE = {"role": _TEXT, "content": _TEXT, "more": _TEXT}
_FEATURES: dict[Form, dict[str, Any]] = {
    "pair": {"prompt": _TEXT, "input": _TEXT, "response": _TEXT},
    "messages": {"messages": List(_MESSAGE), "context": _TEXT, "location": _TEXT},
    "text": {"text": _TEXT},
    "labelled": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("int64")},
    "scored": {"text": _TEXT, "text_pair": _TEXT, "labels": Value("float32")},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Checked examples, not yet tokenized."""

    form: Form
    """Form of the examples: ``pair`` (columns prompt, input, response), ``messages`` (messages, location,
    context; `balora.data.messages`), ``text`` (text),
    ``labelled`` or ``scored`` (text, for pairs text_pair, labels). For seq2seq, classes and scores become a ``pair``."""
    train: Dataset
    eval: Dataset | None
    label_names: tuple[str, ...] | None
    """Names of the classes in the order of their numbers, for classification, also as seq2seq."""
    train_source: str
    """Names of the files or hub datasets of the training rows."""
    eval_source: str | None
    perturbations: dict[str, Any] | None
    """Counts of what the perturbations did to the training rows; None if there are none."""
    digest: str
    """SHA-256 over all examples in order. It does not depend on the path of the data."""

    @property
    def id2label(self) -> dict[int, str] | None:
        """Names of the classes by number, as in transformers' configs."""
        return None if self.label_names is None else dict(enumerate(self.label_names))

    @property
    def num_labels(self) -> int | None:
        """Number of outputs of a classification head; 1 for regression, None for generation."""
        if self.form == "scored":
            return 1
        return len(self.label_names) if self.form == "labelled" and self.label_names else None


def load_examples(data: DataConfig, task: str, seed: int = 42, *, head: Sequence[str] | None = None) -> Examples:
    """Read and check the examples of a run: perturbed training examples and unchanged evaluation examples.

    The seed determines the perturbations and, if ``data.eval`` is a fraction, the evaluation rows.
    ``head`` has the classes of the model's own classification head, in its order: the classes of the data take that order.

    Raises:
        BALoraError: A source is missing, broken or empty, a column is missing, or rows cannot be used.
    """
    train, evaluation = _read(data, seed)
    further = [(part, _read(part, seed)[0]) for part in data.sources[1:]]
    if data.unlabelled == "leave_out" and data.form in ("labelled", "scored"):
        given = [(data, train), *further, *([(data, evaluation)] if evaluation is not None else [])]
        tables = leave_out_unlabelled(given)
        train, evaluation = tables[0], None if evaluation is None else tables[-1]
        further = [(part, table) for (part, _), table in zip(further, tables[1:], strict=False)]
    labels = None
    if data.form == "labelled":
        sources = [(data, train), *further, *([(data, evaluation)] if evaluation is not None else [])]
        _refuse_mixed_classes(sources)
        labels = _labels(train, data)
        for part, table in sources:
            _check_order(labels, table, part, train)
        if head is not None and task == "classification":
            chosen = bool(data.labels or train.class_names.get(str(data.label)))
            labels, note = match_head(labels, head, chosen=chosen)
            if note:
                logger.warning(note)
    as_text = task == "seq2seq" and data.form != "pair"
    form: Form = "pair" if as_text else data.form
    bad = BadRows()
    rows = [convert(table, data, labels, bad, as_text=as_text) for table in (train, evaluation) if table is not None]
    weights = [entry.weight for entry in data.also or ()]
    for number, ((part, table), weight) in enumerate(zip(further, weights, strict=True)):
        drawn = repeated(convert(table, part, labels, bad, as_text=as_text), weight, f"{seed} {number}")
        if not drawn and table.rows:
            raise BALoraError(
                f"data.also.{number}.weight {weight:g} takes none of the {len(table.rows)} rows of {table.name}. Raise it, or "
                "leave the source out."
            )
        rows[0] += drawn
    bad.raise_if_any()
    if evaluation is not None:
        _warn_of_overlap(*rows)
    rows[0], perturbations = apply_perturbations(rows[0], data, labels, seed)
    return Examples(
        form=form,
        train=to_dataset(rows[0], form),
        eval=to_dataset(rows[1], form) if evaluation is not None else None,
        label_names=labels.names if labels else None,
        train_source=" + ".join(
            [train.name, *(_weighted(t.name, w) for (_, t), w in zip(further, weights, strict=True))]
        ),
        eval_source=evaluation.name if evaluation is not None else None,
        perturbations=perturbations,
        digest=_digest(rows),
    )


def _weighted(name: str, weight: float) -> str:
    return name if weight == 1 else f"{weight:g} × {name}"


def repeated(rows: Sequence[Row], weight: float, seed: str) -> list[Row]:
    """Return each row ``weight`` times: as many copies as its whole part, and once more a random fraction of the rows.

    Example:
        >>> repeated([{"text": "a"}, {"text": "b"}], 2.0, "0")
        [{'text': 'a'}, {'text': 'b'}, {'text': 'a'}, {'text': 'b'}]
        >>> len(repeated([{"text": letter} for letter in "abcdefgh"], 0.25, "0"))
        2
    """
    whole = int(weight)
    extra = round((weight - whole) * len(rows))
    chosen = sorted(random.Random(f"weight {seed}").sample(range(len(rows)), extra))
    return [*(row for _ in range(whole) for row in rows), *(rows[number] for number in chosen)]


def _read(data: DataConfig, seed: int) -> tuple[Table, Table | None]:
    """Read the tables that one section names and check their columns."""
    named = set(used_columns(data).values())
    if data.form == "messages":
        named |= set(context_columns(data).values())
    train, evaluation = read_tables(data, named | {outer_column(column) for column in named}, seed)
    for table in (train, evaluation):
        if table is not None:
            check_columns(table, data)
    return train, evaluation


def _labels(train: Table, data: DataConfig) -> LabelSet:
    """Return the classes: those of the config, else those that the source declares, else those in the training rows."""
    assert data.label is not None
    names = data.labels or train.class_names.get(data.label)
    if names:
        return LabelSet(names)
    values, bad = given_labels(train, data)
    refused = placeholders(values)
    if refused:
        _, bad = given_labels(train, data, refused)
        bad.raise_if_any("Correct these rows; if a label is a class, name all classes in data.labels.")
    if len({label_key(value) for value in values}) < 2:
        bad.raise_if_any()  # rows without a usable label are the cause, so report them first
    labels = find_labels(values, data.label, train.name)
    for doubt in doubts(labels, data.label, train.name):
        logger.warning("%s If that is wrong, remove these rows%s.", doubt, _LEAVE_OUT if "-1" in labels.names else "")
    return labels


def _refuse_mixed_classes(sources: Sequence[tuple[DataConfig, Table]]) -> None:
    for part, table in sources:
        reason = table.mixed.get(str(part.label))
        if reason:
            raise BALoraError(
                f"data.label: {reason}. Put each source with other classes under data.also, and name all classes in "
                "data.labels."
            )


def _check_order(labels: LabelSet, table: Table, data: DataConfig, train: Table) -> None:
    """Refuse a source that numbers the same classes in another order, since its numbers would mean other classes."""
    declared = table.class_names.get(str(data.label))
    if declared is None:
        numbers = tuple(map(str, range(len(labels.names))))
        if (
            table is not train
            and str(data.label) in train.class_names
            and "1" in labels.names
            and labels.names != numbers
        ):
            logger.warning(
                "%s does not declare its classes: its numbers are taken for the names of classes (%s), not for positions.",
                table.name,
                ", ".join(labels.names[:10]),
            )
        return
    matched = match_names(declared, labels.names)
    if any(declared.index(name) != number for number, name in matched.items()):
        raise BALoraError(
            f"{table.name} numbers its classes in the order {', '.join(declared)}, but the order of this run is "
            f"{', '.join(labels.names)}. Give the classes in the first order in data.labels."
        )


def to_dataset(rows: list[Row], form: Form) -> Dataset:
    """Return examples of a form as a dataset with the columns of that form."""
    columns = {name: kind for name, kind in _FEATURES[form].items() if any(name in row for row in rows)}
    if form == "messages" and not any("more" in message for row in rows for message in row["messages"]):
        columns["messages"] = List({"role": _TEXT, "content": _TEXT})
    # A list of rows would have the columns of its first row.
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}, features=Features(columns))


def _warn_of_overlap(train: list[Row], evaluation: list[Row]) -> None:
    """Warn if evaluation rows are also training rows; slices of one file overlap easily."""
    seen = {_content(row) for row in train}
    both = sum(_content(row) in seen for row in evaluation)
    if both:
        logger.warning(
            "%s of %s evaluation rows are also training rows; their scores say nothing about new data.",
            f"{both:,}",
            f"{len(evaluation):,}",
        )


def _digest(parts: list[list[Row]]) -> str:
    digest = hashlib.sha256()
    for rows in parts:
        for row in rows:
            digest.update(_content(row).encode())
        digest.update(b"\n--\n")
    return digest.hexdigest()


def _content(row: Row) -> str:
    """Write a row as text, without its location: a copy in another file is the same example."""
    content = {name: value for name, value in row.items() if name != "location"}
    return json.dumps(content, sort_keys=True, ensure_ascii=False)
