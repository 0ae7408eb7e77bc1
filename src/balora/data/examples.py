"""`load_examples`: the rows that a config's ``data`` section names, read, checked and converted to one form."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
import random
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from datasets import Dataset

from balora.config.data_columns import Form
from balora.config.sections import DataConfig
from balora.data.classes.head_classes import match_head, match_names
from balora.data.classes.labels import LabelSet, doubts, find_labels, label_key, placeholders
from balora.data.classes.unlabelled import leave_out_unlabelled
from balora.data.columns import check_columns, convert, given_labels, outer_column, used_columns
from balora.data.conversations.messages import context_columns
from balora.data.data_cache import cache_directory, cached, files_fingerprint, fingerprint, recorded_messages
from balora.data.example_writer import END_OF_PART, DatasetExamples, ExampleWriter, content
from balora.data.files.lazy_rows import LazyRows, Picked
from balora.data.files.sources import read_tables
from balora.data.files.tables import BadRows, Table
from balora.data.perturbations import apply_perturbations
from balora.errors import BALoraError

logger = logging.getLogger("balora")
_LEAVE_OUT = " (data.unlabelled: leave_out does so for -1)"
_Item = TypeVar("_Item")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examples:
    """Checked examples, not yet tokenized."""

    form: Form
    """Form of the examples: ``pair`` (columns prompt, input, response), ``messages`` (messages, location,
    context; `balora.data.conversations.messages`), ``text`` (text),
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
    cache: str | None = None
    """Directory of the cache that has the examples; None if they are in memory."""

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
    Examples of large local files are cached (`balora.data.data_cache`).

    Raises:
        BALoraError: A source is missing, broken or empty, a column is missing, or rows cannot be used.
    """
    files = files_fingerprint(data)
    if files is None:
        return _load(data, task, seed, head, None)
    section = data.model_dump(mode="json", exclude={"num_proc"})
    key = fingerprint("examples", files, section, task, seed, None if head is None else list(head))
    shown: list[str] = []

    def make(directory: Path) -> dict[str, Any]:
        with recorded_messages() as messages:
            made = _load(data, task, seed, head, directory)
        shown.extend(messages)
        facts = {field.name: getattr(made, field.name) for field in dataclasses.fields(made)}
        parts = {"train": facts.pop("train"), "eval": facts.pop("eval")}
        columns = {part: dataset.column_names for part, dataset in parts.items() if dataset is not None}
        return {**facts, "columns": columns, "messages": messages}

    def read(directory: Path, facts: dict[str, Any]) -> Examples:
        for message in facts.pop("messages"):
            if message not in shown:
                logger.warning(message)
        parts: dict[str, Dataset | None] = {"train": None, "eval": None}
        for part, columns in facts.pop("columns").items():
            parts[part] = Dataset.from_file(str(directory / f"{part}.arrow")).select_columns(columns)
        names = facts.pop("label_names")
        return Examples(**{**facts, **parts, "label_names": names and tuple(names), "cache": str(directory)})

    return cached(cache_directory() / key, make, read)


def _load(data: DataConfig, task: str, seed: int, head: Sequence[str] | None, directory: Path | None) -> Examples:
    """Read and check the examples; write them to files in the directory, or keep them in memory if it is None."""
    train, evaluation = _read(data, seed)
    further = [(part, _read(part, seed)[0]) for part in data.sources[1:]]
    if data.unlabelled == "leave_out" and data.form in ("labelled", "scored"):
        tables = leave_out_unlabelled(
            [(data, train), *further, *([(data, evaluation)] if evaluation is not None else [])]
        )
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
    digest, hashed = hashlib.sha256(), evaluation is not None
    writer = ExampleWriter(form, _file(directory, "rows"), digest, hashed=hashed)
    counts = [
        writer.write(convert(table, part, labels, bad, as_text=as_text)) for part, table in [(data, train), *further]
    ]
    digest.update(END_OF_PART)
    tested = None if evaluation is None else ExampleWriter(form, _file(directory, "eval"), digest, hashed=True)
    if evaluation is not None and tested is not None:
        tested.write(convert(evaluation, data, labels, bad, as_text=as_text))
        digest.update(END_OF_PART)
    bad.raise_if_any()
    made, made_eval = writer.close(), tested.close() if tested is not None else None
    weights = [entry.weight for entry in data.also or ()]
    given = DatasetExamples(made)
    weighted = _with_weights(given, counts, weights, [table for _, table in further], seed)
    if tested is not None:
        _warn_of_overlap(writer.hashes, tested.hashes)
    rows, perturbations = apply_perturbations(weighted, data, labels, seed)
    final = _file(directory, "train")
    if rows is given:
        if directory is not None and final is not None:
            os.replace(directory / "rows.arrow", final)
    else:
        digest = hashlib.sha256()
        changed = ExampleWriter(form, final, digest)
        changed.write(rows)
        made = changed.close()
        digest.update(END_OF_PART)
        if made_eval is not None:
            for row in DatasetExamples(made_eval):
                digest.update(content(row))
            digest.update(END_OF_PART)
        if directory is not None:
            (directory / "rows.arrow").unlink()
    return Examples(
        form=form,
        train=made,
        eval=made_eval,
        label_names=labels.names if labels else None,
        train_source=" + ".join(
            [train.name, *(_weighted(t.name, w) for (_, t), w in zip(further, weights, strict=True))]
        ),
        eval_source=evaluation.name if evaluation is not None else None,
        perturbations=perturbations,
        digest=digest.hexdigest(),
    )


def _file(directory: Path | None, name: str) -> Path | None:
    return None if directory is None else directory / f"{name}.arrow"


def _with_weights(
    rows: LazyRows, counts: Sequence[int], weights: Sequence[float], further: Sequence[Table], seed: int
) -> LazyRows:
    """Return the rows of the first source, and those of each further one as often as its weight says."""
    if all(weight == 1 for weight in weights):
        return rows
    chosen, start = [*range(counts[0])], counts[0]
    for number, (weight, count, table) in enumerate(zip(weights, counts[1:], further, strict=True)):
        drawn = repeated(range(start, start + count), weight, f"{seed} {number}")
        if not drawn and count:
            raise BALoraError(
                f"data.also.{number}.weight {weight:g} takes none of the {count} rows of {table.name}. Raise it, or "
                "leave the source out."
            )
        chosen += drawn
        start += count
    return Picked(rows, chosen)


def _weighted(name: str, weight: float) -> str:
    return name if weight == 1 else f"{weight:g} × {name}"


def repeated(rows: Sequence[_Item], weight: float, seed: str) -> list[_Item]:
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


def _warn_of_overlap(train: array[int], evaluation: array[int]) -> None:
    """Warn if evaluation rows are also training rows, by their hashes; slices of one file overlap easily."""
    both = int(np.isin(np.frombuffer(evaluation, np.uint64), np.frombuffer(train, np.uint64)).sum())
    if both:
        logger.warning(
            "%s of %s evaluation rows are also training rows; their scores say nothing about new data.",
            f"{both:,}",
            f"{len(evaluation):,}",
        )
