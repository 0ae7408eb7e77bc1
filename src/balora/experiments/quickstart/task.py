r"""The quickstart's task: short answers about the world, in a form that is not in the pre-training text, with noisy labels.

A question asks for two facts in key words; the answer has only their values::

    prompt    "Q: Albin, city and land?\n"
    response  "A: Mormora, Ostmark"

The corpus states the facts one at a time and in sentences. It never has this form, nor the land of a person. The people and cities
of the test rows are not those of the training rows, so a model scores well only if it learns the form and does not forget the
facts. A declared fraction of the training rows is wrong: the answer is another subject's. Test rows are clean.

All words of the answers occur in the pre-training text, because an adapter does not change the head and could hardly make the model
write a token that it never learnt to write.

Tokenize a row as the begin token, the prompt, the response and the end token. :func:`score` expects this form too.
"""

import random
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypedDict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from balora.errors import BALoraError
from balora.experiments.quickstart.world import World, world

NOISE = 0.20
"""Fraction of training rows with a wrong response."""
TRAIN_ROWS = 2400
"""Number of training rows: 150 steps of 16."""
DATA_SECTION = {"prompt": "prompt", "response": "response", "prompt_template": "{prompt}", "max_length": 64}
"""Keys of the section ``data`` of a run's config, without the files."""
_TEST_ONE_IN = 3  # of the people, and of the cities
_WORDINGS = ("Q: {s}, {kind}?\n", "Q: {kind} of {s}?\n", "In short, {s}: {kind}.\n", "{s}, {kind}, in short.\n")
_TEST_WORDINGS = 2  # rows per test question; each wording occurs in the training rows too

Kind = Literal["city and land", "work and animal", "land and river"]


class Row(TypedDict):
    """One example."""

    prompt: str
    response: str


def _answer(kind: Kind, subject: str, known: World) -> str:
    """Return the true response."""
    if kind == "city and land":
        home = known.truth(subject, "home")
        return f"A: {home}, {known.truth(home, 'land')}"
    first, second = ("job", "pet") if kind == "work and animal" else ("land", "river")
    return f"A: {known.truth(subject, first)}, {known.truth(subject, second)}"


Split = Literal["train", "test"]


def _questions(split: Split) -> list[tuple[Kind, str]]:
    """Return all pairs (kind, subject) of one split. The split is by subject."""
    known = world()

    def in_split(subjects: Sequence[str]) -> list[str]:
        mixed = random.Random("the task's split").sample(subjects, len(subjects))
        cut = len(mixed) // _TEST_ONE_IN
        return mixed[:cut] if split == "test" else mixed[cut:]

    kinds: tuple[tuple[Kind, Sequence[str]], ...] = (
        ("city and land", known.people), ("work and animal", known.people), ("land and river", known.cities),
    )  # fmt: skip
    return [(kind, subject) for kind, subjects in kinds for subject in in_split(subjects)]


def _prompt(kind: Kind, subject: str, wording: int) -> str:
    return _WORDINGS[wording].format(s=subject, kind=kind)


@cache
def _truths() -> dict[str, str]:
    """Return the true response to every prompt of both splits."""
    return {
        _prompt(kind, subject, wording): _answer(kind, subject, world())
        for kind, subject in _questions("train") + _questions("test")
        for wording in range(len(_WORDINGS))
    }


def true_response(prompt: str) -> str:
    """Return the true response to a prompt of the task.

    Raises:
        BALoraError: ``prompt`` is not a prompt of this task.

    Example:
        >>> all(row["response"] == true_response(row["prompt"]) for row in test_rows(0))
        True
    """
    if prompt not in _truths():
        raise BALoraError(f"{prompt!r} is not a prompt of the quickstart's task.")
    return _truths()[prompt]


def train_rows(seed: int, *, count: int = TRAIN_ROWS, noise: float = NOISE) -> list[Row]:
    """Return training rows, some of them wrong on purpose: a wrong response is the true one for another subject.

    Args:
        seed: Any integer, for the order, the wordings and the choice of wrong rows.
        count: Number of rows; each question occurs about equally often.
        noise: Fraction of wrong rows, in [0, 1]; ``round(noise * count)`` rows are wrong.

    Raises:
        BALoraError: ``count`` < 1, or ``noise`` is not in [0, 1].

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
    """Return clean rows about people and cities that are in no training row; ``seed`` chooses the wordings.

    There are 160 rows: every test question in two wordings, each with its true response.
    """
    rng = random.Random(f"task test:{seed}")
    return [
        Row(prompt=_prompt(kind, subject, wording), response=_answer(kind, subject, world()))
        for kind, subject in _questions("test")
        for wording in rng.sample(range(len(_WORDINGS)), _TEST_WORDINGS)
    ]


test_rows.__test__ = False  # type: ignore[attr-defined]  # else pytest collects it as a test


@torch.inference_mode()
def score(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Row], *, batch_size: int = 80
) -> float:
    """Return the fraction of rows that the model answers exactly, by greedy generation.

    White space at both ends is ignored. The model's training mode is restored afterwards. The tokenizer must add the begin token
    and have a pad token.

    Raises:
        BALoraError: There are no rows.
    """
    if not rows:
        raise BALoraError("There are no rows to score.")
    was_training = model.training
    model.eval()
    longest = max(len(ids) for ids in tokenizer([row["response"] for row in rows])["input_ids"])
    right = 0
    for first in range(0, len(rows), batch_size):
        part = rows[first : first + batch_size]
        batch = tokenizer([row["prompt"] for row in part], padding=True, padding_side="left", return_tensors="pt")
        batch = {name: batch[name].to(model.device) for name in ("input_ids", "attention_mask")}
        options = {"max_new_tokens": longest + 1, "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
        output = model.generate(**batch, **options)
        answers = tokenizer.batch_decode(output[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(answer.strip() == row["response"].strip() for answer, row in zip(answers, part, strict=True))
    model.train(was_training)
    return right / len(rows)
