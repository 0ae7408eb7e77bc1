"""Classes and scores as text, several sources, and columns inside columns."""

from __future__ import annotations

import datasets
import pytest

from balora.config.data_columns import data_problems
from balora.config.run_config import DataConfig, RunConfig
from balora.data.classes.verbalizer import UNREADABLE, read_class, read_score, score_word
from balora.data.examples import load_examples
from balora.data.prompts import render_prompt, template_of
from balora.data.tokenize import tokenize_examples
from balora.errors import BALoraError


def error_of(data: DataConfig, task: str = "seq2seq") -> str:
    with pytest.raises(BALoraError) as error:
        load_examples(data, task)
    return str(error.value)


# --- text -------------------------------------------------------------------------------------------------------------


def test_every_score_is_rounded_and_read_back() -> None:
    words = {score_word(hundredth / 100) for hundredth in range(501)}
    assert words == {f"{whole}.{tenth}" for whole in range(5) for tenth in (0, 2, 4, 6, 8)} | {"5.0"}
    for hundredth in range(501):
        assert abs(read_score(score_word(hundredth / 100)) - hundredth / 100) <= 0.1 + 1e-9
    assert score_word(-0.04) == "0.0"


@pytest.mark.parametrize(
    ("answer", "number"),
    [("no", 0), (" yes ", 1), ("y es", 1), ("Yes", UNREADABLE), ("", UNREADABLE), ("yesno", UNREADABLE)],
)
def test_answers_are_read_as_classes(answer: str, number: int) -> None:
    assert read_class(answer, ("no", "yes")) == number


def test_text_without_a_number_is_unreadable() -> None:
    assert read_score("3 . 8") == 3.8
    assert [read_score(answer) for answer in ("", "high", "nan", "inf")] == [UNREADABLE] * 4


# --- rows -------------------------------------------------------------------------------------------------------------


def test_labels_by_name_number_or_text_become_the_same_text(jsonl) -> None:
    path = jsonl(*({"a": "x", "b": "y", "l": value} for value in ("no", "1", 0, 1.0)))
    data = DataConfig(train=path, text=("a", "b"), label="l", labels=("no", "yes"))
    examples = load_examples(data, "seq2seq")
    assert examples.train["response"][:] == ["no", "yes", "no", "yes"]
    assert examples.train[0] == {"prompt": "x", "input": "y", "response": "no"}
    assert (examples.form, examples.label_names, examples.num_labels) == ("pair", ("no", "yes"), None)
    assert load_examples(data, "classification").train["labels"][:] == [0, 1, 0, 1]


def test_scores_become_text(jsonl) -> None:
    data = DataConfig(train=jsonl({"t": "x", "s": "2.75"}, {"t": "y", "s": 5}), text="t", score="s")
    assert load_examples(data, "seq2seq").train["response"][:] == ["2.8", "5.0"]


def test_a_bad_row_is_reported(jsonl) -> None:
    data = DataConfig(train=jsonl({"t": "x", "l": "maybe"}), text="t", label="l", labels=("no", "yes"))
    assert "line 1: the label 'maybe' is not one of no, yes" in error_of(data)


def test_a_text_template_is_part_of_the_tokens(jsonl, tokenizer) -> None:
    data = DataConfig(
        train=jsonl({"a": "x", "b": "y", "l": 1}), text=("a", "b"), label="l", labels=("no", "yes"),
        prompt_template="t 1: {text} 2: {text_pair}",
    )  # fmt: skip
    row = tokenize_examples(load_examples(data, "seq2seq"), tokenizer, data, "seq2seq").train[0]
    assert "".join(tokenizer.convert_ids_to_tokens(row["input_ids"])) == "t 1: x 2: y"
    assert "".join(tokenizer.convert_ids_to_tokens(row["labels"])) == "yes"


@pytest.mark.parametrize(
    ("text", "template", "prompt"),
    [
        ("a", "none", "x"),
        (("a", "b"), "none", "x y"),
        (("a",), "q: {text}", "q: x"),
        (("a", "b"), "{text_pair} {text} {other}", "y x {other}"),
    ],
)
def test_templates_of_text_columns(text, template: str, prompt: str) -> None:
    data = DataConfig(train="d.tsv", text=text, label="l", prompt_template=template)
    pair = isinstance(text, tuple) and len(text) == 2
    assert render_prompt(template_of(data), "x", "y" if pair else "") == prompt


def test_a_prompt_template_keeps_other_braces() -> None:
    data = DataConfig(train="d.tsv", prompt="p", response="r", prompt_template="{prompt} {text}")
    assert render_prompt(template_of(data), "x") == "x {text}"


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"text": "t"}, "give prompt and response, or text and label, or text and score"),
        ({"label": "l"}, "data.text is missing: task seq2seq needs text and label"),
        ({"text": "t", "label": "l", "score": "s"}, "data.text and data.label and data.score make different kinds"),
        (
            {"text": "t", "score": "s", "labels": ["a", "b"]},
            "data.labels is not used for task seq2seq with text and score",
        ),
        (
            {"text": ["a", "b"], "label": "l", "prompt_template": "{text}"},
            "contains {text} and {text_pair}, not '{text}'",
        ),
        ({"text": "a", "label": "l", "prompt_template": "{prompt}"}, "a text that contains {text}, not '{prompt}'"),
        ({"text": "a", "label": "l", "prompt_template": "{text} {text_pair}"}, "but data.text names only one column"),
        ({"text": "a", "label": "l", "separator": " "}, "data.separator is not used for task seq2seq"),
        ({"text": ["a", "b", "c"], "label": "l"}, "one or two columns, not 3"),
        ({"prompt": "p", "response": "r", "text": "t"}, "data.text is not used for task seq2seq"),
    ],
)
def test_sections_that_do_not_fit_are_reported(section: dict, message: str) -> None:
    assert any(message in problem for problem in data_problems({"train": "d.tsv", **section}, "seq2seq"))


# --- the hub's numbers ------------------------------------------------------------------------------------------------


def _hub(monkeypatch, **classes: list[str]) -> None:
    def load_dataset(name: str, configuration: str | None, *, split: str) -> datasets.Dataset:
        label = datasets.ClassLabel(names=classes[name])
        features = datasets.Features({"t": datasets.Value("string"), "l": label})
        return datasets.Dataset.from_dict({"t": ["x", "y"], "l": [0, 1]}, features=features)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)


def test_class_numbers_of_a_hub_dataset_become_its_names_or_those_of_the_config(monkeypatch) -> None:
    _hub(monkeypatch, glue=["neg", "pos"])
    own = DataConfig(train="glue", text="t", label="l")
    assert load_examples(own, "seq2seq").train["response"][:] == ["neg", "pos"]
    renamed = DataConfig(train="glue", text="t", label="l", labels=("bad", "good"))
    assert load_examples(renamed, "seq2seq").train["response"][:] == ["bad", "good"]


@pytest.mark.parametrize("task", ["classification", "seq2seq"])
def test_the_same_classes_in_another_order_are_refused(monkeypatch, task: str) -> None:
    """The hub's 0 would be the other class, without a word."""
    _hub(monkeypatch, glue=["neg", "pos"], also=["pos", "neg"])
    turned = DataConfig(train="glue", text="t", label="l", labels=("pos", "neg"))
    assert "numbers its classes in the order neg, pos" in error_of(turned, task)
    joined = DataConfig(train="glue", text="t", label="l", also=({"train": "also"},))
    assert "also (train) numbers its classes in the order pos, neg" in error_of(joined, task)


# --- several sources --------------------------------------------------------------------------------------------------


def test_several_sources_are_joined_each_with_its_own_columns(jsonl) -> None:
    first = jsonl({"q": "1", "a": "one"}, {"q": "2", "a": "two"}, name="first.jsonl")
    second = jsonl({"q": "3", "answer": "three"}, {"q": "4", "answer": "four"}, name="second.jsonl")
    data = DataConfig(
        train=first, split="train[1:]", prompt="q", response="a",
        also=({"train": second, "response": "answer"}, {"train": first, "split": "[:1]", "prompt": "a"}),
    )  # fmt: skip
    examples = load_examples(data, "generation")
    assert [(row["prompt"], row["response"]) for row in examples.train] == [
        ("2", "two"), ("3", "three"), ("4", "four"), ("one", "one"),
    ]  # fmt: skip
    assert examples.train_source == f"{first} + {second} + {first}"


def test_evaluation_rows_come_from_the_first_source(jsonl) -> None:
    first, second = (jsonl(*({"t": f"{name} {i}"} for i in range(10)), name=f"{name}.jsonl") for name in ("a", "b"))
    examples = load_examples(DataConfig(train=first, text="t", eval=0.5, also=({"train": second},)), "generation")
    assert len(examples.train) == 15
    assert all(row["text"].startswith("a ") for row in examples.eval)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"trian": "x", "train": "y"}, "Unknown key data.also.0.trian. Did you mean 'train'?"),
        ({"split": "train"}, "data.also.0.train is missing"),
        ({"train": "x", "text": "t"}, "In data.also.0: data.text is not used"),
        ("x", "data.also.0 must be a section with keys, not 'x'"),
    ],
)
def test_wrong_entries_are_reported_with_their_number(entry, message: str) -> None:
    with pytest.raises(BALoraError) as error:
        RunConfig.from_dict(
            {"model": "m", "task": "seq2seq", "output": "o",
             "data": {"train": "d.jsonl", "prompt": "p", "response": "r", "also": [entry]}}
        )  # fmt: skip
    assert message in str(error.value)


def test_the_resolved_config_keeps_its_sources(jsonl) -> None:
    config = RunConfig.from_dict(
        {"model": "m", "task": "generation", "output": "o",
         "data": {"train": "d.jsonl", "prompt": "p", "response": "r", "also": [{"train": "e.jsonl", "response": "s"}]}}
    )  # fmt: skip
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.data.sources[1].response == "s"


# --- columns inside columns -------------------------------------------------------------------------------------------

TALK = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]


def test_a_column_can_be_inside_another(jsonl) -> None:
    data = DataConfig(train=jsonl({"c": TALK}), prompt="c[0].value", response="c[1].value")
    assert load_examples(data, "generation").train.to_list() == [{"prompt": "hi", "input": "", "response": "hello"}]


def test_a_column_with_exactly_that_name_wins(jsonl) -> None:
    data = DataConfig(train=jsonl({"c[0].value": "x", "#1 String": "y"}), prompt="c[0].value", response="#1 String")
    assert load_examples(data, "generation").train[0] == {"prompt": "x", "input": "", "response": "y"}


def test_a_hub_dataset_is_read_by_the_outer_column(monkeypatch) -> None:
    rows = datasets.Dataset.from_list([{"idx": 1, "c": TALK}])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    data = DataConfig(train="hub/set", prompt="c[0].value", response="c[1].value")
    assert load_examples(data, "generation").train[0]["response"] == "hello"


@pytest.mark.parametrize("column", ["c[2].value", "c[1].text", "c.value", "c[1].value.more"])
def test_a_missing_value_inside_a_column_is_a_bad_row(jsonl, column: str) -> None:
    data = DataConfig(train=jsonl({"c": TALK}), prompt="c[0].value", response=column)
    assert f"line 1: '{column}' does not exist: 'c' is [" in error_of(data, "generation")


def test_a_missing_outer_column_is_reported(jsonl) -> None:
    data = DataConfig(train=jsonl({"c": TALK}), prompt="d[0].value", response="c[1].value")
    assert "has no column 'd[0].value' (data.prompt)" in error_of(data, "generation")
