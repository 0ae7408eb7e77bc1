"""Base classes of the tasks: `Task`, and `GenerationTask` for tasks that grade generated text."""

import abc
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from balora.data.files.tables import Row
from balora.evaluation.context import EvaluationContext, Request
from balora.evaluation.data import HubDataset, Rows, read_rows
from balora.evaluation.results import Record, count_answers
from balora.turns import from_first


class Task(abc.ABC):
    """One task of one evaluation. Data or options that do not suit the task raise BALoraError on construction."""

    def __init__(self, context: EvaluationContext, name: str) -> None:
        self.context = context
        self.name = name

    @abc.abstractmethod
    def evaluate(self) -> Record:
        """Compute the samples that the journal lacks, score all samples, write the result file, and return its content."""


class GenerationTask(Task):
    """Task that generates an answer for each row, grades every answer, and scores the grades.

    A subclass defines the attributes and the methods below, in which such tasks differ.
    """

    hub: HubDataset
    """Default dataset."""
    solution: str
    """Column of the reference solution."""
    max_new_tokens: int
    """Default limit of an answer."""
    default_template: str
    """Prompt template for a model that was not trained with one."""
    default_separator: str

    def __init__(self, context: EvaluationContext, name: str) -> None:
        super().__init__(context, name)
        self.rows = self._select(read_rows(context.options.data.get(name), self.hub))
        self.prompting = context.prompting(self.default_template, self.default_separator)
        self.sampling = context.sampling(self.max_new_tokens, stops=self._stops())
        self.journal = context.journal(
            name,
            data=self.rows.digest,
            prompting={**dataclasses.asdict(self.prompting), **self._prompting_details()},
            generation=self.sampling.describe(),
        )

    def evaluate(self) -> Record:
        """Generate, grade and score. See `Task.evaluate`."""
        tokenizer = self.context.tokenizer
        requests = [
            Request(sample, self._prompt(row, tokenizer), self._reference(row))
            for index, row in enumerate(self.rows.rows[: self.context.options.limit])
            for sample in self._sample_names(index)
        ]
        self.context.answer(self.journal, requests, self.prompting, self.sampling)
        return from_first(lambda: self._result([request.sample for request in requests]))

    def _result(self, samples: Sequence[str]) -> Record:
        """Grade and score the answers, write the result file, and return its content."""
        self._grade(samples)
        records = {sample: self.journal.records[sample] for sample in samples}
        counts = count_answers(records.values())
        self.context.warn_about(counts, len(samples))
        scores = {**self._scores(records), **counts}
        return self.journal.finish(samples, scores, {"data": self.rows.source, **self._result_details()})

    def _select(self, rows: Rows) -> Rows:
        """Check the columns and select the rows of the task."""
        return rows

    def _reference(self, row: Row) -> str:
        """Return the reference answer of a row, as a model would write it."""
        return str(row[self.solution])

    def _sample_names(self, index: int) -> Sequence[str]:
        """Return the names of the samples of a row."""
        return [str(index)]

    def _result_details(self) -> Mapping[str, Any]:
        """Return further entries of the result file."""
        return {}

    @abc.abstractmethod
    def _stops(self) -> tuple[str, ...]:
        """Return the strings that end an answer."""

    @abc.abstractmethod
    def _prompting_details(self) -> Mapping[str, Any]:
        """Return what decides the prompts besides the prompt format, for the identity of the journal."""

    @abc.abstractmethod
    def _prompt(self, row: Row, tokenizer: Any) -> str:
        """Return the text that the model continues."""

    @abc.abstractmethod
    def _grade(self, samples: Sequence[str]) -> None:
        """Grade the answers without a grade, and write the grades into the journal."""

    @abc.abstractmethod
    def _scores(self, records: Mapping[str, Record]) -> Record:
        """Compute the scores from the graded samples, by sample name."""
