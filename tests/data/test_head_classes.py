"""Classes of the data take the order of a head that the model already has."""

from __future__ import annotations

import pytest

from balora.config.run_config import DataConfig
from balora.data.classes.head_classes import match_head
from balora.data.classes.labels import LabelSet
from balora.data.examples import load_examples


def classify(train: str, **more) -> DataConfig:
    return DataConfig(train=train, text="t", label="l", **more)


NLI = ("contradiction", "entailment", "neutral")


def test_the_classes_take_the_order_of_the_models_head(jsonl, caplog):
    path = jsonl(*({"t": name, "l": name} for name in NLI))
    head = ("CONTRADICTION", "NEUTRAL", "ENTAILMENT")
    examples = load_examples(classify(path), "classification", head=head)
    assert examples.label_names == ("contradiction", "neutral", "entailment")
    assert examples.train["labels"][:] == [0, 2, 1]
    assert len(caplog.records) == 1
    assert "matched by name" in caplog.text
    assert "contradiction = CONTRADICTION, neutral = NEUTRAL, entailment = ENTAILMENT" in caplog.text


def test_numbers_keep_the_order_of_data_labels_under_a_head_of_another_order(jsonl):
    path = jsonl({"t": "a", "l": 0}, {"t": "b", "l": 1}, {"t": "c", "l": "positive"})
    data = classify(path, labels=["negative", "positive"])
    examples = load_examples(data, "classification", head=("Pos", "Neg"))
    assert examples.label_names == ("positive", "negative")
    assert examples.train["labels"][:] == [1, 0, 0]


@pytest.mark.parametrize(
    ("names", "head", "order", "said"),
    [
        (("neg", "pos"), ("positive", "negative"), ("pos", "neg"), "matched by name"),
        (("contradict", "entail", "neutral"), ("entailment", "NEUTRAL", "contradiction"), ("entail", "neutral", "contradict"),
         "matched by name"),
        (("entailment", "not_entailment"), ("Not Entailment", "Entailment"), ("not_entailment", "entailment"), "matched by name"),
        (("0", "1", "2"), ("NEG", "NEU", "POS"), ("0", "1", "2"), "The numbers in the data are taken for"),
        (("1", "2"), ("bad", "good"), ("1", "2"), "1 = bad, 2 = good"),
        (("bad", "good"), ("LABEL_0", "LABEL_1"), ("bad", "good"), "does not name its classes"),
        (("0", "1"), ("LABEL_0", "LABEL_1"), ("0", "1"), None),
        (("bad", "good"), ("bad", "good"), ("bad", "good"), None),
        (("ham", "spam"), ("neg", "pos"), ("ham", "spam"), "no class named ham, spam"),
        (("mixed", "neg", "pos"), ("neg", "neu", "pos"), ("neg", "mixed", "pos"), "no class named mixed"),
        (("a", "b"), ("x", "y", "z"), ("a", "b"), "replaced by a new, untrained one"),
        (("neg", "pos", "positive"), ("POS", "NEG", "other"), ("pos", "neg", "positive"), "no class named positive"),
    ],
)  # fmt: skip
def test_classes_are_matched_with_a_head(names, head, order, said):
    labels, note = match_head(LabelSet(names), head)
    assert labels.names == order
    assert (said in note) if said else note is None


def test_an_unnamed_head_is_no_question_if_the_order_was_chosen():
    assert match_head(LabelSet(("good", "bad")), ("LABEL_0", "LABEL_1"), chosen=True) == (
        LabelSet(("good", "bad")),
        None,
    )
