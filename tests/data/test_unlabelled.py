"""``data.unlabelled``: rows without a label are refused, or left out and counted."""

from __future__ import annotations

import logging

import pytest

from balora.config.sections import DataConfig
from balora.data.examples import load_examples
from balora.errors import BALoraError


def load(train, task="classification", **more):
    return load_examples(DataConfig(train=train, text="t", **{"label": "l", **more}), task)


def rows(*labels):
    return [{"t": f"text {number}", "l": label} for number, label in enumerate(labels)]


@pytest.mark.parametrize("labels", [(0, 1, 2, -1), ("a", "b", "-", "a"), ("a", "b", ""), ("a", "b", None)])
def test_the_refusal_names_the_option(jsonl, labels):
    with pytest.raises(BALoraError, match=r"data\.unlabelled: leave_out leaves out rows without a label\."):
        load(jsonl(*rows(*labels)))


@pytest.mark.parametrize(
    ("labels", "kept", "said"),
    [
        ((0, 1, -1, 1, -1, None), ["0", "1"], "3 of 6 rows of {path} (-1: 2, empty: 1)"),
        (("a", "-", "b", "nan", " "), ["a", "b"], "3 of 5 rows of {path} ('-': 1, 'nan': 1, empty: 1)"),
        ((-1, 1, -1), ["-1", "1"], None),
    ],
)
def test_rows_without_a_label_are_left_out_and_counted(jsonl, caplog, labels, kept, said):
    path = jsonl(*rows(*labels))
    with caplog.at_level(logging.WARNING, logger="balora"):
        examples = load(path, unlabelled="leave_out")
    assert list(examples.label_names) == kept
    told = [record.getMessage() for record in caplog.records]
    if said is None:
        assert told == []
    else:
        assert told == [f"Rows without a label are left out (data.unlabelled: leave_out): {said.format(path=path)}."]


def test_every_source_of_rows_is_cleaned(jsonl, caplog):
    train, more = jsonl(*rows("a", "b", "-")), jsonl(*rows("b", -1), name="more.jsonl")
    test = jsonl(*rows(-1, "a", 1), name="test.jsonl")
    examples = load(train, unlabelled="leave_out", also=[{"train": more}], eval=test)
    assert examples.train["labels"][:] == [0, 1, 1]
    assert examples.eval["labels"][:] == [0, 1]
    assert len(caplog.records) == 1
    assert (
        f"1 of 3 rows of {train} ('-': 1); 1 of 2 rows of {more} (-1: 1); 1 of 3 rows of {test} (-1: 1)" in caplog.text
    )


def test_a_mark_that_the_config_names_is_a_class_and_a_typing_mistake_is_refused(jsonl):
    path = jsonl(*rows("-", "a", "b"))
    assert load(path, unlabelled="leave_out", labels=["-", "a", "b"]).train["labels"][:] == [0, 1, 2]
    with pytest.raises(BALoraError, match="looks like a mistyped number"):
        load(jsonl(*rows(1, 2, "--1")), unlabelled="leave_out")
    with pytest.raises(BALoraError, match="the label 'c' is not one of a, b"):
        load(jsonl(*rows("a", "b", "c")), unlabelled="leave_out", labels=["a", "b"])


def test_a_source_without_any_label_is_refused(jsonl):
    train, test = jsonl(*rows("a", "b")), jsonl(*rows(-1, -1), name="test.jsonl")
    with pytest.raises(BALoraError, match=r"No row of .*test\.jsonl has a label \(-1: 2\)"):
        load(train, unlabelled="leave_out", eval=test)


def test_scores(jsonl, caplog):
    path = jsonl(*({"t": "x", "s": score} for score in (0.5, None, "-", float("nan"), -1)))
    examples = load(path, task="regression", label=None, score="s", unlabelled="leave_out")
    assert examples.train["labels"][:] == [0.5, -1.0]
    assert "3 of 5 rows" in caplog.text
    with pytest.raises(BALoraError, match="'s' is 'high', not a number"):
        bad = jsonl({"t": "x", "s": "high"}, {"t": "x", "s": 1}, name="bad.jsonl")
        load(bad, task="regression", label=None, score="s", unlabelled="leave_out")
