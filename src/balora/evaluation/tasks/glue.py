"""The eight tasks of GLUE: their columns, their classes, what they are scored by.

Reference: Wang et al., GLUE, 2018. The paper reports Matthews for CoLA, Pearson for STS-B, accuracy otherwise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from balora.data.labels import label_key
from balora.data.verbalizer import UNREADABLE
from balora.errors import BALoraError
from balora.evaluation.context import Session
from balora.evaluation.data import Origin, Rows
from balora.evaluation.engines.classifier import Predictor
from balora.evaluation.engines.text_labels import NO_CLASS, WordedPredictor
from balora.evaluation.results import Journal, Record
from balora.evaluation.scoring.scores import class_scores, regression_scores

_HUB = "nyu-mll/glue"


@dataclasses.dataclass(frozen=True)
class GlueTask:
    """One task."""

    name: str
    folder: str
    """What the official archive calls it."""
    texts: tuple[tuple[str, ...], ...]
    """For each text, the names its column goes by."""
    classes: tuple[str, ...]
    """In the hub's order; none for scores."""
    main: str
    """The figure that stands for the task."""
    label: tuple[str, ...] = ("label",)
    splits: tuple[str, ...] = ("validation", "dev")

    def origin(self) -> Origin:
        """Where its rows are on the hub."""
        return Origin(_HUB, (self.name.removesuffix("_mismatched"),), self.splits)


_SENTENCES = (("sentence1", "#1 String"), ("sentence2", "#2 String"))
_NLI = ("entailment", "neutral", "contradiction")
TASKS = {
    task.name: task
    for task in (
        GlueTask("cola", "CoLA", (("sentence",),), ("unacceptable", "acceptable"), "matthews"),
        GlueTask("sst2", "SST-2", (("sentence",),), ("negative", "positive"), "accuracy"),
        GlueTask("mrpc", "MRPC", _SENTENCES, ("not_equivalent", "equivalent"), "accuracy", ("label", "Quality")),
        GlueTask("stsb", "STS-B", _SENTENCES, (), "pearson", ("score", "label")),
        GlueTask(
            "qqp", "QQP", (("question1",), ("question2",)), ("not_duplicate", "duplicate"), "accuracy",
            ("label", "is_duplicate"),
        ),
        GlueTask(
            "mnli", "MNLI", (("premise", "sentence1"), ("hypothesis", "sentence2")), _NLI, "accuracy",
            ("label", "gold_label"), ("validation_matched", "dev_matched"),
        ),
        GlueTask(
            "mnli_mismatched", "MNLI", (("premise", "sentence1"), ("hypothesis", "sentence2")), _NLI, "accuracy",
            ("label", "gold_label"), ("validation_mismatched", "dev_mismatched"),
        ),
        GlueTask("qnli", "QNLI", (("question",), ("sentence",)), ("entailment", "not_entailment"), "accuracy"),
        GlueTask("rte", "RTE", _SENTENCES, ("entailment", "not_entailment"), "accuracy"),
    )
}  # fmt: skip
"""By name. MNLI has two, for its matched and its mismatched rows."""


def evaluate_glue(session: Session, name: str) -> Record:
    """Score a classifier, for STS-B a regression model, or an encoder-decoder that says classes or scores in words, on one task.

    Returns:
        The result: scores, provenance, and every row with what the model said of it.

    Raises:
        BALoraError: The data cannot be read, or the model is not one for this task.
    """
    task = TASKS[name]
    rows = _rows(session, task)
    wanted = [str(number) for number in range(len(session.limited(rows.rows)))]
    texts = [[str(row[column]) for column in (rows.column(*names) for names in task.texts)] for row in rows.rows]
    labels = [_label(task, row[rows.column(*task.label)], number, rows) for number, row in enumerate(rows.rows)]
    journal = session.journal(name, rows)
    todo = [int(sample) for sample in journal.missing(wanted, "output")]
    if todo:
        said = _said if session.loaded.task == "seq2seq" else _predicted
        for place, facts in said(session, task, [texts[number] for number in todo]):
            number = todo[place]
            journal.add(str(number), texts=texts[number], label=labels[number], **facts)
    scores = _scores(task, journal, wanted)
    if "not_finite" in scores:
        session.say(
            f"  {scores['not_finite']:,} of {len(wanted):,} rows have outputs that are NaN or infinite; they count as wrong"
        )
    return journal.finish(wanted, scores, {"data": rows.source})


def _predicted(session: Session, task: GlueTask, texts: list[list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """A classifier's or regressor's outputs, row by row."""
    predictor = Predictor(session.loaded, session.subject.settings, session.options.batch_size)
    names = predictor.classes_for(task.classes, task.name) if task.classes else predictor.require_scores(task.name)
    for place, logits in predictor.predict(texts):
        facts: dict[str, Any] = {"output": logits}
        if task.classes:
            best = max(range(len(logits)), key=logits.__getitem__)
            facts["predicted"] = names[best] if _is_finite(logits) else NO_CLASS
        yield place, facts


def _said(session: Session, task: GlueTask, texts: list[list[str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """What an encoder-decoder says, and the class or score that is read from it."""
    predictor = WordedPredictor(session.loaded, session.subject.settings, session.options.batch_size)
    names = predictor.classes_for(task.classes, task.name) if task.classes else predictor.require_scores(task.name)
    for place, words in predictor.answer(texts):
        yield place, {"output": words, "predicted": predictor.read(words, names)}


def _scores(task: GlueTask, journal: Journal, wanted: list[str]) -> dict[str, object]:
    records = [journal.records[sample] for sample in wanted]
    truth = [record["label"] for record in records]
    found = [_found(task, record) for record in records]
    scores = class_scores(truth, found, task.classes) if task.classes else regression_scores(truth, found)
    if any(isinstance(record["output"], str) for record in records):
        scores["unreadable"] = sum(value in (NO_CLASS, UNREADABLE) for value in found) / len(found)
    broken = sum(not _is_finite(record["output"]) for record in records)
    return {"main": task.main, **scores, **({"not_finite": broken} if broken else {})}


def _found(task: GlueTask, record: Record) -> Any:
    """The class or score of a row. Logits that are no numbers are none, as an answer is that cannot be read."""
    if not _is_finite(record["output"]):
        return NO_CLASS if task.classes else float(UNREADABLE)
    return record["predicted"] if "predicted" in record else record["output"][0]


def _is_finite(output: object) -> bool:
    """Whether logits are all numbers (words are); the journal has None for NaN and infinities."""
    return not isinstance(output, list) or all(value is not None and math.isfinite(value) for value in output)


def _rows(session: Session, task: GlueTask) -> Rows:
    """The task's rows; `--data glue=FOLDER` is a folder of folders, as the official archive has it."""
    given = session.options.data
    parent = given.get("glue")
    own = task.name if task.name in given else task.name.removesuffix("_mismatched")
    if own not in given and parent is not None:
        place = next((path for path in Path(parent).expanduser().glob("*") if _same(path.name, task)), None)
        if place is None:
            raise BALoraError(f"{parent} (--data glue) has no folder {task.folder}.")
        rows = session.rows_at(str(place), task.origin())
    else:
        rows = session.rows_at(given.get(own), task.origin())
    return _with_header(rows) if task.name == "cola" else rows


def _same(folder: str, task: GlueTask) -> bool:
    return folder.lower() in (task.folder.lower(), task.name, task.name.removesuffix("_mismatched"))


def _with_header(rows: Rows) -> Rows:
    """CoLA's official files have no first line with names, so the reader took a sentence for it."""
    names = ("source", "label", "mark", "sentence")
    if "sentence" in rows.columns or len(rows.columns) != len(names) or rows.columns[1] not in ("0", "1"):
        return rows
    lines = [rows.columns, *(tuple(row.values()) for row in rows.rows)]
    return Rows(rows.source, [dict(zip(names, line, strict=True)) for line in lines], names)


def _label(task: GlueTask, value: object, number: int, rows: Rows) -> str | float:
    """A class by its name, whether the data have names or numbers; a score as a number."""
    key = label_key(value)
    if not task.classes:
        try:
            return float(key)
        except ValueError:
            raise BALoraError(f"Row {number + 1} of {rows.source}: the score {value!r} is not a number.") from None
    if key in task.classes:
        return key
    if key.isdecimal() and int(key) < len(task.classes):
        return task.classes[int(key)]
    if key == "-1":
        raise BALoraError(
            f"{rows.source} has no labels (they are -1): GLUE keeps those of its test rows. Take validation rows."
        )
    raise BALoraError(
        f"Row {number + 1} of {rows.source}: the label {value!r} is not one of {', '.join(task.classes)}."
    )


__all__ = ["TASKS", "GlueTask", "evaluate_glue"]
