"""Tasks of GLUE: columns, classes and metrics.

Reference: Wang et al., GLUE, 2018. The paper reports Matthews for CoLA, Pearson for STS-B, and accuracy for the others.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from balora.data.classes.labels import label_key
from balora.data.classes.verbalizer import UNREADABLE
from balora.errors import BALoraError
from balora.evaluation.context import EvaluationContext, own_share
from balora.evaluation.data import HubDataset, Rows, read_rows
from balora.evaluation.engines.predictors import NO_CLASS, ClassifierPredictor, TextLabelPredictor
from balora.evaluation.results import Record
from balora.evaluation.scoring.metrics import classification_metrics, regression_metrics
from balora.evaluation.tasks.task import Task
from balora.turns import from_first


@dataclasses.dataclass(frozen=True)
class GlueDataset:
    """Data of one task."""

    folder: str
    """Directory in the official archive."""
    texts: tuple[tuple[str, ...], ...]
    """Possible names of the column, for each text of a row."""
    classes: tuple[str, ...]
    """Classes in the hub's order; empty for a regression task."""
    main: str = "accuracy"
    """Name of the main score."""
    label: tuple[str, ...] = ("label",)
    """Possible names of the label's column."""
    splits: tuple[str, ...] = ("validation", "dev")


_SENTENCES = (("sentence1", "#1 String"), ("sentence2", "#2 String"))
_MNLI = GlueDataset(
    "MNLI",
    (("premise", "sentence1"), ("hypothesis", "sentence2")),
    ("entailment", "neutral", "contradiction"),
    label=("label", "gold_label"),
    splits=("validation_matched", "dev_matched"),
)
DATASETS = {
    "cola": GlueDataset("CoLA", (("sentence",),), ("unacceptable", "acceptable"), "matthews"),
    "sst2": GlueDataset("SST-2", (("sentence",),), ("negative", "positive")),
    "mrpc": GlueDataset("MRPC", _SENTENCES, ("not_equivalent", "equivalent"), label=("label", "Quality")),
    "stsb": GlueDataset("STS-B", _SENTENCES, (), "pearson", ("score", "label")),
    "qqp": GlueDataset(
        "QQP", (("question1",), ("question2",)), ("not_duplicate", "duplicate"), label=("label", "is_duplicate")
    ),
    "mnli": _MNLI,
    "mnli_mismatched": dataclasses.replace(_MNLI, splits=("validation_mismatched", "dev_mismatched")),
    "qnli": GlueDataset("QNLI", (("question",), ("sentence",)), ("entailment", "not_entailment")),
    "rte": GlueDataset("RTE", _SENTENCES, ("entailment", "not_entailment")),
}
"""Data of each task, by task name."""


class GlueTask(Task):
    """Task of GLUE, for a classifier, a regression model, or an encoder-decoder that writes classes or scores as text."""

    def __init__(self, context: EvaluationContext, name: str) -> None:
        super().__init__(context, name)
        self.dataset = DATASETS[name]
        self.rows = self._read_rows()
        columns = [self.rows.column(*names) for names in self.dataset.texts]
        label = self.rows.column(*self.dataset.label)
        self.texts = [[str(row[column]) for column in columns] for row in self.rows.rows]
        self.labels = [self._label(row[label], index) for index, row in enumerate(self.rows.rows)]
        self.journal = context.journal(name, data=self.rows.digest)

    def evaluate(self) -> Record:
        """Predict, then compute the metrics. See `Task.evaluate`."""
        samples = [str(index) for index in range(len(self.texts[: self.context.options.limit]))]
        pending = [int(sample) for sample in self.journal.missing(samples, "output")]
        if pending:
            _ = self.context.loaded
            with self.context.progress("rows", own_share(len(pending))) as add:
                for position, fields in self._predict([self.texts[index] for index in pending]):
                    index = pending[position]
                    self.journal.add(str(index), texts=self.texts[index], label=self.labels[index], **fields)
                    add(1)
            self.journal.exchange()
        return from_first(lambda: self._result(samples))

    def _result(self, samples: Sequence[str]) -> Record:
        """Score the predictions, write the result file, and return its content."""
        scores = self._scores([self.journal.records[sample] for sample in samples])
        if "not_finite" in scores:
            self.context.say(
                f"  {scores['not_finite']:,} of {len(samples):,} rows have outputs that are NaN or infinite; they count as wrong"
            )
        return self.journal.finish(samples, scores, {"data": self.rows.source})

    def _predict(self, texts: Sequence[Sequence[str]]) -> Iterator[tuple[int, Record]]:
        """Yield the index of each row with its output (logits, or an encoder-decoder's text) and its class or score."""
        context, classes = self.context, self.dataset.classes
        arguments = context.loaded, context.model_under_test.settings, context.options.batch_size
        if context.loaded.task == "seq2seq":
            writer = TextLabelPredictor(*arguments)
            names = writer.classes_for(classes, self.name)
            for position, answer in writer.answer(texts):
                yield position, {"output": answer, "predicted": writer.read(answer, names)}
            return
        classifier = ClassifierPredictor(*arguments)
        names = classifier.classes_for(classes, self.name)
        for position, logits in classifier.predict(texts):
            best = max(range(len(logits)), key=logits.__getitem__)
            predicted = {"predicted": names[best] if _is_finite(logits) else NO_CLASS} if classes else {}
            yield position, {"output": logits, **predicted}

    def _scores(self, records: Sequence[Record]) -> Record:
        classes = self.dataset.classes
        truth = [record["label"] for record in records]
        predicted = [self._prediction(record) for record in records]
        scores = classification_metrics(truth, predicted, classes) if classes else regression_metrics(truth, predicted)
        if any(isinstance(record["output"], str) for record in records):
            scores["empty_answers"] = sum(record["output"] == "" for record in records)
            scores["unreadable"] = sum(value in (NO_CLASS, UNREADABLE) for value in predicted) / len(predicted)
        not_finite = sum(not _is_finite(record["output"]) for record in records)
        return {"main": self.dataset.main, **scores, **({"not_finite": not_finite} if not_finite else {})}

    def _prediction(self, record: Record) -> Any:
        """Return the predicted class or score of a row. Outputs that are not finite count as an unreadable answer."""
        if not _is_finite(record["output"]):
            return NO_CLASS if self.dataset.classes else float(UNREADABLE)
        return record["predicted"] if "predicted" in record else record["output"][0]

    def _read_rows(self) -> Rows:
        """Read the rows. ``--data glue=DIR`` is the official archive, with one directory per task."""
        data, hub_name = self.context.options.data, self.name.removesuffix("_mismatched")
        hub = HubDataset("nyu-mll/glue", (hub_name,), self.dataset.splits)
        location = data.get(self.name, data.get(hub_name))
        if location is None and (archive := data.get("glue")) is not None:
            names = (self.dataset.folder.lower(), self.name, hub_name)
            found = [path for path in Path(archive).expanduser().glob("*") if path.name.lower() in names]
            if not found:
                raise BALoraError(f"{archive} (--data glue) has no directory {self.dataset.folder}.")
            location = str(found[0])
        rows = read_rows(location, hub)
        return _with_cola_header(rows) if self.name == "cola" else rows

    def _label(self, value: object, index: int) -> str | float:
        """Return the name of a class that the data give by name or number, or a score as a number."""
        classes, source = self.dataset.classes, self.rows.source
        key = label_key(value)
        if not classes:
            try:
                return float(key)
            except ValueError:
                raise BALoraError(f"Row {index + 1} of {source}: the score {value!r} is not a number.") from None
        if key in classes:
            return key
        if key.isdecimal() and int(key) < len(classes):
            return classes[int(key)]
        if key == "-1":
            raise BALoraError(
                f"{source} has no labels (they are -1). GLUE publishes none for its test rows; use the validation rows."
            )
        raise BALoraError(f"Row {index + 1} of {source}: the label {value!r} is not one of {', '.join(classes)}.")


def _is_finite(output: object) -> bool:
    """Return True if all logits are finite. Text is finite; the journal writes NaN and infinities as None."""
    return not isinstance(output, list) or all(value is not None and math.isfinite(value) for value in output)


def _with_cola_header(rows: Rows) -> Rows:
    """Name the columns of CoLA's official files. They have no header, so the reader used the first row as the header."""
    names = ("source", "label", "mark", "sentence")
    if "sentence" in rows.columns or len(rows.columns) != len(names) or rows.columns[1] not in ("0", "1"):
        return rows
    lines = [rows.columns, *(tuple(row.values()) for row in rows.rows)]
    return Rows(rows.source, [dict(zip(names, line, strict=True)) for line in lines], names)
