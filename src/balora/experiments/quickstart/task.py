r"""The quickstart's task: terse answers about the world, a form that pre-training never showed, with noisy labels.

A question asks for two facts in key words, and is answered by their values alone::

    prompt    "Q: Albin, city and land?\n"
    response  "A: Mormora, Ostmark"

The facts are in the corpus, one at a time and in sentences; this form is not, nor the land of a person. The people and
cities of the test rows are not those of the training rows, so a model does well only if it learns the form and keeps
what it knew. Of the training rows a declared share is wrong: the answer is another subject's. Test rows are clean.

The answers are made of words that pre-training has used: an adapter leaves the head alone, and could hardly make the
model write a token whose output row was never wanted.

Tokenize a row as the begin token, the prompt, the response and the end token; that is also what :func:`score` expects.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypedDict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.experiments.quickstart.world import World, world

NOISE = 0.20
"""Share of the training rows whose response is wrong."""

TRAIN_ROWS = 2400
"""Training rows: 150 steps of 16."""

_TEST_ONE_IN = 3  # of the people, and of the cities
_WORDINGS = (
    "Q: {s}, {kind}?\n",
    "Q: {kind} of {s}?\n",
    "In short, {s}: {kind}.\n",
    "{s}, {kind}, in short.\n",
)
_TEST_WORDINGS = 2  # rows per test question; each wording occurs in the training rows too

Kind = Literal["city and land", "work and animal", "land and river"]


class Row(TypedDict):
    """One example."""

    prompt: str
    response: str


def _answer(kind: Kind, subject: str, known: World) -> str:
    """The true record."""
    if kind == "city and land":
        home = known.truth(subject, "home")
        return f"A: {home}, {known.truth(home, 'land')}"
    if kind == "work and animal":
        return f"A: {known.truth(subject, 'job')}, {known.truth(subject, 'pet')}"
    return f"A: {known.truth(subject, 'land')}, {known.truth(subject, 'river')}"


Split = Literal["train", "test"]


def _questions(split: Split) -> list[tuple[Kind, str]]:
    """All (kind, subject) of one side of the split, which is by subject."""
    known = world()

    def side(subjects: Sequence[str]) -> list[str]:
        mixed = random.Random("the task's split").sample(subjects, len(subjects))
        cut = len(mixed) // _TEST_ONE_IN
        return mixed[:cut] if split == "test" else mixed[cut:]

    questions: list[tuple[Kind, str]] = [("city and land", person) for person in side(known.people)]
    questions += [("work and animal", person) for person in side(known.people)]
    questions += [("land and river", city) for city in side(known.cities)]
    return questions


def _prompt(kind: Kind, subject: str, wording: int) -> str:
    return _WORDINGS[wording].format(s=subject, kind=kind)


@cache
def _truths() -> dict[str, str]:
    """The true response to every prompt of either split."""
    asked = _questions("train") + _questions("test")
    return {
        _prompt(kind, subject, wording): _answer(kind, subject, world())
        for kind, subject in asked
        for wording in range(len(_WORDINGS))
    }


def true_response(prompt: str) -> str:
    """The response that the world gives to a prompt of the task.

    Raises:
        BALoraError: It is not a prompt of this task.

    Example:
        >>> all(row["response"] == true_response(row["prompt"]) for row in test_rows(0))
        True
    """
    if prompt not in _truths():
        raise BALoraError(f"{prompt!r} is not a prompt of the quickstart's task.")
    return _truths()[prompt]


def train_rows(seed: int, *, count: int = TRAIN_ROWS, noise: float = NOISE) -> list[Row]:
    """Training rows, some of them wrong on purpose.

    Args:
        seed: Any integer; decides the order, the wordings and which rows are wrong.
        count: Number of rows; each question comes up about equally often.
        noise: Share of wrong rows, in [0, 1]; ``round(noise * count)`` rows are wrong.

    Returns:
        Rows with ``prompt`` and ``response``. A wrong response is the true one of another subject.

    Raises:
        BALoraError: ``count`` < 1, or ``noise`` is not a share.

    Example:
        >>> rows = train_rows(0)
        >>> sum(row["response"] != true_response(row["prompt"]) for row in rows) / len(rows)
        0.2
    """
    if count < 1 or not 0.0 <= noise <= 1.0:
        raise BALoraError(f"The task needs at least one row and a noise share in [0, 1], not {count} and {noise}.")
    rng = random.Random(f"task:{seed}")
    questions = _questions("train")
    asked: list[tuple[Kind, str]] = []
    while len(asked) < count:
        asked += rng.sample(questions, len(questions))
    wrong = set(rng.sample(range(count), round(noise * count)))
    rows: list[Row] = []
    for index, (kind, subject) in enumerate(asked[:count]):
        response = true = _answer(kind, subject, world())
        while index in wrong and response == true:
            other_kind, other = rng.choice(questions)
            response = _answer(kind, other, world()) if other_kind == kind else true
        rows.append(Row(prompt=_prompt(kind, subject, rng.randrange(len(_WORDINGS))), response=response))
    return rows


def test_rows(seed: int) -> list[Row]:
    """Clean rows about people and cities of whom no training row tells anything.

    Args:
        seed: Any integer; decides the wordings. The questions are always the same.

    Returns:
        160 rows: every test question in two wordings, each with its true response.
    """
    rng = random.Random(f"task test:{seed}")
    return [
        Row(prompt=_prompt(kind, subject, wording), response=_answer(kind, subject, world()))
        for kind, subject in _questions("test")
        for wording in rng.sample(range(len(_WORDINGS)), _TEST_WORDINGS)
    ]


test_rows.__test__ = False  # type: ignore[attr-defined]  # a name that pytest would collect


@torch.inference_mode()
def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, batch_size: int = 80
) -> float:
    """Share of the rows that the model answers exactly, by greedy generation.

    Args:
        model: A causal language model, plain or with adapters. Its training mode is put back afterwards.
        tokenizer: Its tokenizer, which adds the begin token and has a pad token.
        rows: Rows as :func:`test_rows` gives them.
        batch_size: Rows generated at once.

    Returns:
        Exact matches over rows, in [0, 1], up to white space at both ends.

    Raises:
        BALoraError: There are no rows.
    """
    if not rows:
        raise BALoraError("There are no rows to score.")
    was_training = model.training
    model.eval()
    longest = max(len(ids) for ids in tokenizer([row["response"] for row in rows])["input_ids"])
    right = 0
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        batch = tokenizer([row["prompt"] for row in part], padding=True, padding_side="left", return_tensors="pt")
        output = model.generate(
            input_ids=batch["input_ids"].to(model.device),
            attention_mask=batch["attention_mask"].to(model.device),
            max_new_tokens=longest + 1,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
        answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(answer.strip() == row["response"].strip() for answer, row in zip(answers, part, strict=True))
    model.train(was_training)
    return right / len(rows)
