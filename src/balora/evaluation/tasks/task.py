"""Base classes of the tasks: what every task offers, and the common path of tasks whose answers are graded text."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any

from balora.data.readers import Row
from balora.evaluation.context import EvaluationContext, Request
from balora.evaluation.data import HubDataset, Rows
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.prompting import Prompting
from balora.evaluation.results import Record


class Task(abc.ABC):
    """One task of one evaluation.

    Args:
        context: Model, options and output directory.
        name: Name of the task.

    Raises:
        BALoraError: The data cannot be read, or an option does not suit the task.
    """

    def __init__(self, context: EvaluationContext, name: str) -> None:
        self.context = context
        self.name = name

    @abc.abstractmethod
    def evaluate(self) -> Record:
        """Compute the samples that the journal lacks, score all samples, and write the result file.

        Returns:
            Content of the result file.

        Raises:
            BALoraError: The model does not suit the task. Finished samples stay in the journal.
        """


class GenerationTask(Task):
    """Task that generates an answer for each row, grades the answers one by one, and scores the grades.

    A subclass defines what differs between such tasks.

    Args:
        context: Model, options and output directory.
        name: Name of the task.
        dataset: Default dataset.
        max_new_tokens: Default limit of an answer.
    """

    default_template: str
    """Prompt template for a model without one of its own."""
    default_separator: str

    def __init__(self, context: EvaluationContext, name: str, dataset: HubDataset, max_new_tokens: int) -> None:
        super().__init__(context, name)
        self.rows = self.select(context.rows(name, dataset))
        self.prompting: Prompting = context.prompting(self.default_template, self.default_separator)
        sampling = context.sampling(max_new_tokens, stops=self.stops())
        self.sampling = sampling
        self.journal = context.journal(
            name,
            data=self.rows.digest,
            prompting={**self.prompting.describe(), **self.prompting_details()},
            generation=sampling.describe(),
        )

    def evaluate(self) -> Record:
        """Generate, grade and score. See `Task.evaluate`."""
        tokenizer = self.context.tokenizer
        requests = [
            Request(sample, self.prompt(row, tokenizer), self.reference(row))
            for index, row in enumerate(self.context.limited(self.rows.rows))
            for sample in self.sample_names(index, self.context.options)
        ]
        self.context.answer(self.journal, requests, self.prompting, self.sampling)
        samples = [request.sample for request in requests]
        self.grade(samples)
        scores = self.scores({sample: self.journal.records[sample] for sample in samples})
        return self.journal.finish(samples, scores, {"data": self.rows.source, **self.details()})

    def select(self, rows: Rows) -> Rows:
        """Check the columns and select the rows of the task."""
        return rows

    def sample_names(self, index: int, options: EvaluationOptions) -> Sequence[str]:
        """Return the names of the samples of a row."""
        return [str(index)]

    def details(self) -> Mapping[str, Any]:
        """Return further entries of the result file."""
        return {}

    @abc.abstractmethod
    def stops(self) -> tuple[str, ...]:
        """Return the strings that end an answer."""

    @abc.abstractmethod
    def prompting_details(self) -> Mapping[str, Any]:
        """Return what the journal's identity says about the prompts, besides the prompt format."""

    @abc.abstractmethod
    def prompt(self, row: Row, tokenizer: Any) -> str:
        """Return the text that the model continues."""

    @abc.abstractmethod
    def reference(self, row: Row) -> str:
        """Return the reference answer of the data."""

    @abc.abstractmethod
    def grade(self, samples: Sequence[str]) -> None:
        """Grade the answers that have no grade yet, and write the grades into the journal."""

    @abc.abstractmethod
    def scores(self, records: Mapping[str, Record]) -> Record:
        """Compute the scores from the graded samples, by sample name."""


__all__ = ["GenerationTask", "Task"]
