"""Evaluation context: the model, the options and the journals that the tasks work with."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from balora.data.special_text import unmark
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Sampling, TransformersGenerator
from balora.evaluation.engines.vllm import VllmGenerator
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.options import EvaluationOptions
from balora.evaluation.progress import progress
from balora.evaluation.prompting import Prompting, prompting_for
from balora.evaluation.results import Journal
from balora.training.distributed.joined import own_device
from balora.turns import division


@dataclasses.dataclass(frozen=True)
class Request:
    """Prompt that the model is to continue."""

    sample: str
    """Name of the sample in the journal."""
    prompt: str
    reference: str
    """Reference answer of the data, used if ``reference`` is evaluated in place of a model."""


def own_share(count: int) -> int:
    """Return about how many of some things this process does; all of them if it is alone."""
    return -(-count // division()[1])


@dataclasses.dataclass
class EvaluationContext:
    """State that the tasks of one evaluation share. The model is loaded on first use."""

    model_under_test: ModelUnderTest
    options: EvaluationOptions
    folder: Path
    """Directory of the results."""
    say: Callable[[str], None]
    """Function that receives progress messages."""
    stack: contextlib.ExitStack
    """Stack that is closed after the evaluation, with the engine's temporary files."""

    @functools.cached_property
    def loaded(self) -> LoadedModel:
        """Loaded model."""
        with self.progress("loading the model"):
            return self.model_under_test.load(own_device(self.options.device))

    @functools.cached_property
    def generator(self) -> TransformersGenerator | VllmGenerator:
        """Engine that continues prompts."""
        if self.options.engine == "vllm":
            return VllmGenerator(self.model_under_test, self.stack)
        if self.loaded.task not in ("generation", "seq2seq"):
            raise BALoraError(
                f"{self.model_under_test.name} is a classifier, which generates no text. It can be evaluated on the tasks of GLUE."
            )
        return TransformersGenerator(self.loaded, self.options.batch_size)

    @property
    def tokenizer(self) -> Any:
        """Tokenizer of the engine; None for reference answers."""
        return None if self.model_under_test.is_reference else self.generator.tokenizer

    def progress(self, what: str, total: int | None = None) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        """Report how far the work of a ``with`` block is. See `progress.progress`."""
        return progress(self.say, what, total)

    def journal(self, task: str, **identity: Any) -> Journal:
        """Open the journal of a task for this model; ``identity`` has the data and settings that decide the samples."""

        def complete() -> dict[str, Any]:
            with self.progress("reading the model's files, which identify it"):
                return {"model": self.model_under_test.identity, **identity}

        return Journal.divided(self.folder, task, complete)

    def prompting(self, default: str, separator: str | None = None) -> Prompting:
        """Choose the prompt format; ``default`` and ``separator`` are the task's."""
        return prompting_for(self.options.prompt_template, self.model_under_test.settings, default, separator)

    def sampling(self, max_new_tokens: int, stops: tuple[str, ...] = (), temperature: float = 0.0) -> Sampling:
        """Choose the generation settings: the user's, else the task's, which are the arguments."""
        options = self.options
        return Sampling(
            max_new_tokens=options.max_new_tokens or max_new_tokens,
            temperature=temperature if options.temperature is None else options.temperature,
            top_p=options.top_p,
            seed=options.seed,
            stops=stops,
            padding="right" if self.model_under_test.is_encoder_decoder else "left",
            draws="" if self.model_under_test.is_reference else options.engine,
        )

    def warn_about(self, counts: Mapping[str, int], total: int) -> None:
        """Say it if a tenth of the answers are empty, or reached the token limit: their scores say little about the model."""
        for count, what in (
            (counts["empty_answers"], "are empty: the model ended them at once. Check the prompt format"),
            (counts["answers_at_token_limit"], "reached the token limit and were cut. Consider --max-new-tokens"),
        ):
            if count * 10 >= total > 0:
                self.say(f"  {count:,} of {total:,} answers {what}")

    def answer(self, journal: Journal, requests: Sequence[Request], prompting: Prompting, sampling: Sampling) -> None:
        """Answer the requests that have no answer yet, and write each answer into the journal.

        Several processes answer different batches, and get the answers of all.
        """
        missing = set(journal.missing([request.sample for request in requests], "output"))
        pending = [request for request in requests if request.sample in missing]
        if len(pending) < len(requests):
            self.say(f"{journal.task}: {len(requests) - len(pending):,} of {len(requests):,} answers are there already")
        if pending:
            for request, fields in self._generate(pending, prompting, sampling):
                prompt = request.prompt if self.tokenizer is None else unmark(self.tokenizer, request.prompt)
                journal.add(request.sample, prompt=prompt, **fields)
            journal.exchange()

    def _generate(
        self, requests: Sequence[Request], prompting: Prompting, sampling: Sampling
    ) -> Iterator[tuple[Request, Mapping[str, Any]]]:
        """Yield each request with the fields of its answer, in the order of completion."""
        if self.model_under_test.is_reference:
            rank, processes = division()
            yield from ((request, {"output": request.reference}) for request in requests[rank::processes])
            return
        prompts = [prompting.tokens(self.tokenizer, request.prompt) for request in requests]
        names = [request.sample for request in requests]
        generator = self.generator
        with self.progress("answers", own_share(len(prompts))) as add:
            for index, answer in generator.generate(prompts, sampling, names):
                fields: dict[str, Any] = {"output": answer.text, "tokens": answer.tokens, "ended": answer.ended}
                yield requests[index], {**fields, "prompt_cut": True} if answer.prompt_cut else fields
                add(1)
