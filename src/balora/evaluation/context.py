"""What every task works with: the model (loaded when first needed), the options, the rows, and its journal."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.errors import BALoraError
from balora.evaluation.data import Origin, Rows, read_rows
from balora.evaluation.engines.transformers import Generator, Sampling, TransformersGenerator
from balora.evaluation.engines.vllm import VllmGenerator
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.prompting import Prompting, prompting_for
from balora.evaluation.results import Journal

Say = Callable[[str], None]
_MANY = 50
"""Answers for which it is worth saying how many are done."""


@dataclasses.dataclass(frozen=True)
class Request:
    """A text that the model is to continue."""

    sample: str
    prompt: str
    reference: str
    """What the data's own answer is, which is taken where no model is evaluated but the measurement itself."""


class Session:
    """One evaluation.

    Args:
        subject: What is evaluated.
        options: How.
        folder: Where the results go.
        say: Takes lines for the user.
    """

    def __init__(
        self, subject: ModelUnderTest, options: EvaluationOptions, folder: Path, say: Say = lambda line: None
    ) -> None:
        self.subject = subject
        self.options = options
        self.folder = folder
        self.say = say
        self._loaded: LoadedModel | None = None
        self._generator: Generator | None = None
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def loaded(self) -> LoadedModel:
        """The model in memory."""
        if self._loaded is None:
            self._loaded = self.subject.load(self.options.device)
        return self._loaded

    @property
    def generator(self) -> Generator:
        """What continues prompts.

        Raises:
            BALoraError: The model is a classifier, or the engine is not there.
        """
        if self._generator is None:
            if self.options.engine == "vllm":
                self._generator = self._open.enter_context(VllmGenerator(self.subject))
            else:
                if self.loaded.task not in ("generation", "seq2seq"):
                    raise BALoraError(
                        f"{self.subject.name} is a classifier, which writes no text. It can be evaluated on GLUE's tasks."
                    )
                self._generator = TransformersGenerator(self.loaded, self.options.batch_size)
        return self._generator

    def rows(self, task: str, origin: Origin) -> Rows:
        """All rows of a task.

        Raises:
            BALoraError: They cannot be read.
        """
        return self.rows_at(self.options.data.get(task), origin)

    def rows_at(self, place: str | None, origin: Origin) -> Rows:
        """All rows at a place the user named, or where the task's own are."""
        return read_rows(place, origin)

    def limited(self, rows: Sequence[Any]) -> Sequence[Any]:
        """The rows to be evaluated: all, or the first ones."""
        return rows[: self.options.limit]

    def journal(self, task: str, rows: Rows, **identity: Any) -> Journal:
        """The task's samples so far, those of this model on these data in this way."""
        return self.journal_of(task, data=rows.digest, **identity)

    def journal_of(self, task: str, **identity: Any) -> Journal:
        """The same for a task whose data are not ours to read."""
        return Journal(self.folder, task, {"model": self._identity, **identity})

    @functools.cached_property
    def _identity(self) -> dict[str, Any]:
        return self.subject.identity

    def prompting(self, default: str, separator: str | None = None) -> Prompting:
        """The frame around the questions of a task."""
        return prompting_for(self.options.prompt_template, self.subject.settings, default, separator)

    def sampling(self, max_new_tokens: int, stops: tuple[str, ...] = (), temperature: float = 0.0) -> Sampling:
        """How to generate: the task's values where the user gives none."""
        options = self.options
        return Sampling(
            max_new_tokens=options.max_new_tokens or max_new_tokens,
            temperature=temperature if options.temperature is None else options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            stops=stops,
        )

    def write_answers(
        self, journal: Journal, requests: Sequence[Request], prompting: Prompting, sampling: Sampling
    ) -> None:
        """Have every request answered that has no answer yet, into the journal, batch by batch."""
        todo = set(journal.missing([request.sample for request in requests], "output"))
        pending = [request for request in requests if request.sample in todo]
        if len(pending) < len(requests):
            self.say(f"{journal.task}: {len(requests) - len(pending):,} of {len(requests):,} answers are there already")
        if not pending:
            return
        for request, facts in self._answers(pending, prompting, sampling):
            journal.add(request.sample, prompt=request.prompt, **facts)

    def _answers(
        self, requests: Sequence[Request], prompting: Prompting, sampling: Sampling
    ) -> Iterator[tuple[Request, Mapping[str, Any]]]:
        if self.subject.is_reference:
            for request in requests:
                yield request, {"output": request.reference}
            return
        generator = self.generator
        prompts = [prompting.tokens(self.tokenizer, request.prompt) for request in requests]
        names = [request.sample for request in requests]
        told = 0
        for done, (number, answer) in enumerate(generator.generate(prompts, sampling, names), 1):
            facts: dict[str, Any] = {"output": answer.text, "tokens": answer.tokens, "ended": answer.ended}
            yield requests[number], {**facts, "prompt_cut": True} if answer.prompt_cut else facts
            if len(prompts) >= _MANY and done * 10 // len(prompts) > told:
                told = done * 10 // len(prompts)
                self.say(f"  {done:,} of {len(prompts):,} answers")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer of whatever generates; None for reference answers."""
        if self.subject.is_reference:
            return None
        if isinstance(self.generator, VllmGenerator):
            return self.generator.tokenizer
        return self.loaded.tokenizer


__all__ = ["Request", "Session"]
