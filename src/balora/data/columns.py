"""Conversion of a table's rows to examples of one form. Rows that cannot be used are found here, before training."""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from balora.config.data_columns import number_or_nan
from balora.config.sections import DataConfig
from balora.data.classes.labels import LabelSet, is_mark, label_key
from balora.data.classes.verbalizer import score_word
from balora.data.conversations.messages import conversation
from balora.data.files.tables import BadRows, Row, Table, shorten
from balora.data.values import MissingLabel, RowProblem, encodable, is_missing
from balora.errors import BALoraError, suggest

# A column, or a value inside one: conversations[0].value
_PATH = re.compile(r"(?P<column>.*?)(?P<steps>(?:\[\d+\]|\.[^.\[\]]+)+)")
_STEP = re.compile(r"\[(?P<index>\d+)\]|\.(?P<key>[^.\[\]]+)")


def used_columns(data: DataConfig) -> dict[str, str]:
    """Return the columns that a ``data`` section names, by the key that names them.

    Example:
        >>> used_columns(DataConfig(train="d.tsv", text=("one", "two"), label="same"))
        {'data.text[0]': 'one', 'data.text[1]': 'two', 'data.label': 'same'}
    """
    columns: dict[str, str] = {}
    for key in ("prompt", "response", "input", "messages", "tools", "system", "text", "label", "score"):
        value = getattr(data, key)
        if isinstance(value, tuple):
            columns.update({f"data.{key}[{i}]": column for i, column in enumerate(value)})
        elif value:
            columns[f"data.{key}"] = value
    return columns


@functools.lru_cache(maxsize=1024)
def outer_column(name: str) -> str:
    """Return the column that contains the value of a name such as ``conversations[0].value``.

    Example:
        >>> outer_column("conversations[0].value"), outer_column("sentence")
        ('conversations', 'sentence')
    """
    match = _PATH.fullmatch(name)
    return match["column"] if match else name


def check_columns(table: Table, data: DataConfig) -> None:
    """Raise `BALoraError` if the table lacks a column that the ``data`` section names."""
    used = used_columns(data).items()
    missing = {k: c for k, c in used if c not in table.columns and outer_column(c) not in table.columns}
    if missing:
        wanted = " and ".join(f"{column!r} ({key})" for key, column in missing.items())
        hint = suggest(next(iter(missing.values())), table.columns)
        noun = "column" if len(missing) == 1 else "columns"
        if len(table.columns) == 1 and (mark := next((m for m in ";\t|" if m in table.columns[0]), None)):
            shown = "a tab" if mark == "\t" else repr(mark)
            hint = f" Its only column contains {shown}: save the file with commas between the columns, or with tabs as .tsv."
        raise BALoraError(
            f"{table.name} has no {noun} {wanted}.{hint} Its columns are {', '.join(filter(None, table.columns))}."
        )


def convert(
    table: Table, data: DataConfig, labels: LabelSet | None, bad: BadRows, *, as_text: bool = False
) -> Iterator[Row]:
    """Convert rows to examples of ``data.form`` (columns: `balora.data.examples.Examples`). ``bad`` collects unusable rows.

    With ``as_text``, a class or score becomes the response, as text, and the text columns become the prompt.
    """
    make = _MAKERS[data.form]
    if labels is not None and data.label in table.class_names:
        labels = dataclasses.replace(labels, positions=True)

    def example(row: Row, location: str) -> Row:
        made = make(row, data, labels)
        if as_text:
            return _label_as_response(made, labels)
        # A chat template may refuse a conversation later; the message then needs the location.
        return {**made, "location": location} if data.form == "messages" else made

    return _usable(table, bad, example)


def given_labels(table: Table, data: DataConfig, refused: Mapping[str, str] | None = None) -> tuple[list[Any], BadRows]:
    """Return the different values of the label column, and the rows without a usable label.

    ``refused`` gives, by label, why it is no class.
    """
    assert data.label is not None
    column, bad, reasons = data.label, BadRows(), refused or {}

    def label(row: Row, _: str) -> Any:
        value = label_of(row, column)
        if label_key(value) in reasons:
            problem = f"the label {value!r} {reasons[label_key(value)]}"
            raise MissingLabel(problem, value) if is_mark(label_key(value)) else RowProblem(problem)
        return value

    # 1, 1.0 and True are equal for Python, but different labels.
    different = {(type(value), value): value for value in _usable(table, bad, label)}
    return list(different.values()), bad


def _usable(table: Table, bad: BadRows, make: Callable[[Row, str], Any]) -> Iterator[Any]:
    """Yield ``make(row, location)`` for every row. ``bad`` collects the rows for which it raises `RowProblem`."""
    for row, location in zip(table.rows, table.locations, strict=True):
        try:
            yield make(row, location)
        except RowProblem as problem:
            bad.add(location, str(problem), unlabelled=isinstance(problem, MissingLabel))


def _pair(row: Row, data: DataConfig, labels: LabelSet | None) -> Row:
    assert data.prompt is not None and data.response is not None
    given = _value(row, data.input) if data.input and outer_column(data.input) in row else None
    return {
        "prompt": _text(row, data.prompt),
        "input": "" if is_missing(given) else _as_text(given, str(data.input)),
        "response": _text(row, data.response),
    }


def _texts(row: Row, data: DataConfig, labels: LabelSet | None = None) -> Row:
    columns = (data.text,) if isinstance(data.text, str) else data.text
    assert columns is not None
    return dict(zip(("text", "text_pair"), [_text(row, column) for column in columns], strict=False))


def _labelled(row: Row, data: DataConfig, labels: LabelSet | None) -> Row:
    assert data.label is not None and labels is not None
    example, value = _texts(row, data), label_of(row, data.label)
    number = _class_number(labels, value)
    if number is None:
        problem = labels.unknown(value)
        raise MissingLabel(problem, value) if is_mark(label_key(value)) else RowProblem(problem)
    return {**example, "labels": number}


@functools.lru_cache(maxsize=4096, typed=True)
def _class_number(labels: LabelSet, value: Any) -> int | None:
    return labels.id_of(value)


def _scored(row: Row, data: DataConfig, labels: LabelSet | None) -> Row:
    assert data.score is not None
    return {**_texts(row, data), "labels": score_of(row, data.score)}


def _label_as_response(example: Row, labels: LabelSet | None) -> Row:
    """Turn a labelled or scored example into prompt and response."""
    value = example["labels"]
    response = score_word(value) if labels is None else labels.names[value]
    return {"prompt": example["text"], "input": example.get("text_pair", ""), "response": response}


def _messages(row: Row, data: DataConfig, labels: LabelSet | None) -> Row:
    assert data.messages is not None
    return conversation(row, _present(row, data.messages), data)


def score_of(row: Row, column: str) -> float:
    """Return the number to predict. An empty cell and a mark such as ``-`` raise `MissingLabel`."""
    value = _not_missing(row, column)
    score = number_or_nan(value)
    if math.isnan(score):
        problem, mark = f"{column!r} is {shorten(repr(value))}, not a number", is_mark(label_key(value))
        raise MissingLabel(problem, value) if mark else RowProblem(problem)
    return score


def label_of(row: Row, column: str) -> Any:
    """Return a class as given; refuse bytes and lists, whose Python spelling would become the name of a class.

    An empty cell raises `MissingLabel`.
    """
    value = _not_missing(row, column)
    if isinstance(value, bytes | list | dict):
        raise RowProblem(f"{column!r} is {shorten(repr(value))}, not the name or number of a class")
    return encodable(value, repr(column)) if isinstance(value, str) else value


def _not_missing(row: Row, column: str) -> Any:
    value = _value(row, column)
    if is_missing(value) or (isinstance(value, str) and not value.strip()):
        raise MissingLabel(f"{column!r} is empty")
    return value


def _present(row: Row, column: str) -> Any:
    value = _value(row, column)
    if is_missing(value):
        raise RowProblem(f"{column!r} is empty")
    return value


def _value(row: Row, name: str) -> Any:
    """Return the value of a column, or of a name such as ``conversations[0].value`` inside a column."""
    if name in row:
        return row[name]
    column = outer_column(name)
    if column not in row:
        raise RowProblem(f"the column {column!r} is missing")
    value = row[column]
    for step in _STEP.finditer(name, len(column)):
        try:
            value = value[step["key"] or int(step["index"])]
        except (KeyError, IndexError, TypeError) as error:
            raise RowProblem(f"{name!r} does not exist: {column!r} is {shorten(repr(row[column]))}") from error
    return value


def _text(row: Row, column: str) -> str:
    text = _as_text(_present(row, column), column)
    if not text.strip():
        raise RowProblem(f"{column!r} is empty")
    return text


def _as_text(value: Any, column: str) -> str:
    """Convert text or a number to text; refuse a list or an object."""
    if isinstance(value, str):
        return encodable(value, repr(column))
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise RowProblem(f"{column!r} is {shorten(repr(value))}, not text")


_MAKERS: dict[str, Callable[[Row, DataConfig, LabelSet | None], Row]] = {
    "pair": _pair,
    "messages": _messages,
    "text": _texts,
    "labelled": _labelled,
    "scored": _scored,
}
