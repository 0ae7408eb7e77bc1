from __future__ import annotations

import pytest

from balora.errors import BALoraError, raise_all, suggest, suggest_path


def test_a_balora_error_is_a_value_error():
    assert issubclass(BALoraError, ValueError)


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("consistancy", ["consistency", "diversity"], " Did you mean 'consistency'?"),
        ("lrn_rate", ["learning_rate", "output"], " Did you mean 'learning_rate'?"),
        ("zzz", ["consistency"], ""),
        ("", ["consistency"], ""),
        ("rank", [], ""),
    ],
)
def test_suggest_returns_the_nearest_name_or_nothing(word, known, hint):
    assert suggest(word, known) == hint


def test_suggest_accepts_any_iterable():
    assert suggest("pisa", (name for name in ("lora", "pissa"))) == " Did you mean 'pissa'?"


def test_suggest_path_returns_the_nearest_sibling(tmp_path):
    for name in ("train.jsonl", "train.yaml"):
        (tmp_path / name).touch()
    assert suggest_path(tmp_path / "trian.yaml") == " Did you mean 'train.yaml'?"
    assert suggest_path(tmp_path / "trian.jsonl", "*.y*ml") == " Did you mean 'train.yaml'?"
    assert suggest_path(tmp_path / "absent" / "train.yaml") == ""


def test_raise_all_without_problems_does_nothing():
    raise_all([], "Heading")


def test_one_problem_is_the_whole_message():
    with pytest.raises(BALoraError) as caught:
        raise_all(["The rank is 0."], "Heading")
    assert str(caught.value) == "The rank is 0."


def test_several_problems_are_all_listed_under_the_heading():
    with pytest.raises(BALoraError) as caught:
        raise_all(["The rank is 0.", "The file is missing."], "It cannot be set up")
    assert str(caught.value) == "It cannot be set up: 2 problems.\n  - The rank is 0.\n  - The file is missing."
