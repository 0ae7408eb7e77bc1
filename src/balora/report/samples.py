"""Samples side by side: the same prompts continued by the pre-trained model and by every method, greedily."""

from __future__ import annotations

import dataclasses
import gc
import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from balora.config.run_config import RunConfig
from balora.data import encode_prompt, load_examples, render_prompt, separator_of
from balora.data.prompts import template_of
from balora.errors import BALoraError
from balora.evaluation.engines.transformers import Sampling, TransformersGenerator
from balora.evaluation.model_under_test import LoadedModel, ModelUnderTest
from balora.evaluation.prompting import CHAT, Prompting
from balora.loading.trained import load_untrained
from balora.report.source import Run

MAX_NEW_TOKENS = 128
PRE_TRAINED = "pre-trained"
_BATCH = 4
Say = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Sample:
    """A prompt with what everyone made of it."""

    prompt: str
    reference: str
    answers: list[tuple[str, str]]
    """Label and text: the pre-trained model first."""


@dataclasses.dataclass(frozen=True)
class _Asked:
    prompt: str
    given: str
    messages: list[dict[str, str]]
    reference: str


def samples_of(runs: Iterable[Run], count: int, say: Say) -> tuple[list[Sample], list[str]]:
    """Load the models one after the other and let each continue the first prompts of the evaluation rows.

    Args:
        runs: Of these, the finished ones that generate; one for each label, the first seed.
        count: Prompts for each group of runs with one model and one data section.
        say: Takes lines for the user.

    Returns:
        The samples, and a sentence for every model that could not be loaded.
    """
    chosen: dict[str, Run] = {}
    for run in runs:
        if run.row.status == "finished" and run.task in ("generation", "seq2seq"):
            chosen.setdefault(run.label, run)
    samples: list[Sample] = []
    problems: list[str] = []
    for _, group in itertools.groupby(sorted(chosen.values(), key=_base), key=_base):
        members = sorted(group, key=lambda run: run.row.regularized)  # the plain methods beside the pre-trained model
        try:
            samples += _of_group(members, count, problems, say)
        except (BALoraError, OSError) as error:
            problems.append(f"There are no samples of {', '.join(run.label for run in members)}: {error}")
    return samples, problems


def _base(run: Run) -> str:
    """What runs must share for their answers to stand side by side: the model, the task, and how it is asked."""
    keys = (
        "model",
        "revision",
        "task",
        "dtype",
        "data.prompt",
        "data.response",
        "data.messages",
        "data.text",
        "data.train",
        "data.eval",
    )
    return repr([(key, run.flat.get(key)) for key in keys])


def _of_group(runs: Sequence[Run], count: int, problems: list[str], say: Say) -> list[Sample]:
    asked: list[_Asked] | None = None
    columns: list[tuple[str, list[str]]] = []
    for run in runs:
        say(f"Samples of {run.label} ...")
        try:
            loaded = ModelUnderTest(str(run.folder)).load(None)
            settings = ModelUnderTest(str(run.folder)).settings
            assert settings is not None, "a run's folder has its config"
            asked = asked or _questions(settings, count)
            if not columns:
                start = dataclasses.replace(loaded, model=load_untrained(run.folder).to(loaded.device))
                columns.append((PRE_TRAINED, _answers(start, settings, asked)))
                del start
            columns.append((run.label, _answers(loaded, settings, asked)))
            del loaded
            gc.collect()
        except (BALoraError, OSError) as error:
            problems.append(f"There are no samples of {run.label}: {error}")
    return [
        Sample(_text(one), one.reference, [(label, answers[number]) for label, answers in columns])
        for number, one in enumerate(asked or [])
    ]


def _questions(settings: RunConfig, count: int) -> list[_Asked]:
    """The first evaluation rows; without any, the first training rows."""
    examples = load_examples(settings.data, settings.task, settings.seed)
    rows: list[dict[str, Any]] = list(
        (examples.eval or examples.train).select(range(min(count, len(examples.eval or examples.train))))
    )
    if examples.form == "messages":
        return [_Asked("", "", list(row["messages"][:-1]), row["messages"][-1]["content"]) for row in rows]
    if examples.form == "text":
        halves = [(row["text"][: len(row["text"]) // 2], row["text"][len(row["text"]) // 2 :]) for row in rows]
        return [_Asked(before, "", [], after) for before, after in halves]
    return [_Asked(row["prompt"], row["input"] or "", [], row["response"]) for row in rows]


def _answers(loaded: LoadedModel, settings: RunConfig, asked: Sequence[_Asked]) -> list[str]:
    """What a model makes of the prompts, asked as it was trained."""
    prompts = [_tokens(loaded, settings, one) for one in asked]
    found = dict(TransformersGenerator(loaded, _BATCH).generate(prompts, Sampling(MAX_NEW_TOKENS)))
    return [found[number].text + ("" if found[number].ended else " …") for number in range(len(asked))]


def _tokens(loaded: LoadedModel, settings: RunConfig, one: _Asked) -> list[int]:
    if one.messages:
        chat = Prompting(CHAT)
        return chat.tokens(loaded.tokenizer, chat.chat(loaded.tokenizer, one.messages))
    if settings.data.form == "text":
        return encode_prompt(loaded.tokenizer, one.prompt)
    template = template_of(settings.data)
    text = render_prompt(template, one.prompt, one.given)
    if settings.task == "seq2seq":
        return list(loaded.tokenizer(text)["input_ids"])
    return encode_prompt(loaded.tokenizer, text + separator_of(template, settings.data.separator))


def _text(one: _Asked) -> str:
    if one.messages:
        return "\n\n".join(f"{message['role']}: {message['content']}" for message in one.messages)
    return one.prompt + (f"\n\n{one.given}" if one.given else "")


__all__ = ["MAX_NEW_TOKENS", "PRE_TRAINED", "Sample", "samples_of"]
