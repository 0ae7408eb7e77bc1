"""Examples: every form, every bad row with its location, labels by name and number."""

from __future__ import annotations

from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from balora.config.run_config import DataConfig
from balora.data.classes.labels import LabelSet, find_labels, label_key
from balora.data.examples import load_examples
from balora.data.files.readers import iterate_rows
from balora.errors import BALoraError


def error_of(data: DataConfig, task: str = "generation") -> str:
    with pytest.raises(BALoraError) as error:
        load_examples(data, task)
    return str(error.value)


def pair(train: str, **more) -> DataConfig:
    return DataConfig(train=train, prompt="q", response="a", **more)


def classify(train: str, **more) -> DataConfig:
    return DataConfig(train=train, text="t", label="l", **more)


# --- forms ------------------------------------------------------------------------------------------------------------


def test_pairs(jsonl):
    data = pair(jsonl({"q": "How many?", "a": 7, "i": None, "more": 1}, {"q": "Hä?", "a": "no\n", "i": "x"}), input="i",
                prompt_template="alpaca")  # fmt: skip
    examples = load_examples(data, "generation")
    assert examples.train.to_list() == [
        {"prompt": "How many?", "input": "", "response": "7"},
        {"prompt": "Hä?", "input": "x", "response": "no\n"},
    ]
    assert (examples.form, examples.eval, examples.label_names, examples.num_labels, examples.id2label) == (
        "pair", None, None, None, None,
    )  # fmt: skip


def test_a_missing_input_is_empty(jsonl):
    path = jsonl({"q": "x", "a": "y", "i": float("nan")})
    examples = load_examples(pair(path, input="i", prompt_template="alpaca"), "generation")
    assert examples.train[0]["input"] == ""


def test_messages_keep_all_their_keys(jsonl):
    talk = [{"role": "user", "content": "hi", "id": 3}, {"role": "assistant", "content": "hello", "tool_calls": None}]
    examples = load_examples(DataConfig(train=jsonl({"m": talk}), messages="m"), "generation")
    assert examples.train[0]["messages"] == [
        {"role": "user", "content": "hi", "more": '{"id": 3}'},
        {"role": "assistant", "content": "hello", "more": None},
    ]


def test_plain_text(jsonl):
    assert load_examples(DataConfig(train=jsonl({"t": "x"}), text="t"), "generation").train.to_list() == [{"text": "x"}]


def test_text_pairs_with_a_score(jsonl):
    data = DataConfig(
        train=jsonl({"a": "x", "b": "y", "s": "4.75"}, {"a": "x", "b": "y", "s": 3}), text=("a", "b"), score="s"
    )
    examples = load_examples(data, "regression")
    assert examples.train.to_list() == [
        {"text": "x", "text_pair": "y", "labels": 4.75}, {"text": "x", "text_pair": "y", "labels": 3.0},
    ]  # fmt: skip
    assert examples.num_labels == 1


def test_the_digest_depends_on_the_examples_and_not_on_their_path(jsonl):
    rows = [{"q": "1", "a": "2"}, {"q": "3", "a": "4"}]
    first = load_examples(pair(jsonl(*rows)), "generation").digest
    assert load_examples(pair(jsonl(*rows, name="other.jsonl")), "generation").digest == first
    assert load_examples(pair(jsonl(*rows[::-1], name="turned.jsonl")), "generation").digest != first


def test_a_copied_conversation_is_the_same_example(jsonl, caplog):
    talk = {"m": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    one, copy = jsonl(talk), jsonl(talk, name="copy.jsonl")
    first = load_examples(DataConfig(train=one, messages="m"), "generation").digest
    assert load_examples(DataConfig(train=copy, messages="m"), "generation").digest == first
    load_examples(DataConfig(train=one, eval=copy, messages="m"), "generation")
    assert "1 of 1 evaluation rows are also training rows" in caplog.text


# --- bad rows ---------------------------------------------------------------------------------------------------------


def test_a_missing_column_is_reported_with_the_existing_ones(jsonl):
    path = jsonl({"question": "1", "answer": "2"})
    data = DataConfig(train=path, prompt="question", response="anser")
    assert error_of(data) == (
        f"{path} has no column 'anser' (data.response). Did you mean 'answer'? Its columns are question, answer."
    )
    assert "has no columns 'q' (data.prompt) and 'a' (data.response)" in error_of(pair(path))
    semicolons = Path(path).with_name("semicolons.csv")
    semicolons.write_text("question;answer\n1;2\n")
    assert "Its only column contains ';': save the file with commas" in error_of(pair(str(semicolons)))


def test_a_key_that_occurs_twice_is_refused(tmp_path):
    path = tmp_path / "twice.jsonl"
    path.write_text('{"q": "1", "a": "2"}\n{"q": "1", "a": "2", "q": "3"}\n')
    assert "line 2: not valid JSON (the key 'q' occurs twice)" in error_of(pair(str(path)))


def test_two_parquet_columns_of_one_name_are_refused(tmp_path):
    path = tmp_path / "twice.parquet"
    columns = [pa.array(["1"]), pa.array(["2"]), pa.array(["3"])]
    pq.write_table(pa.table(columns, names=["q", "q", "a"]), path)
    assert "has two columns of one name: q, q, a" in error_of(pair(str(path)))
    with pytest.raises(BALoraError, match="two columns of one name"):
        next(iterate_rows(path))


def test_a_missing_column_of_the_evaluation_rows_is_reported(jsonl):
    other = jsonl({"q": "1"}, name="dev.jsonl")
    assert f"{other} has no column 'a'" in error_of(pair(jsonl({"q": "1", "a": "2"}), eval=other))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"q": "x"}, "the column 'a' is missing"),
        ({"q": "x", "a": None}, "'a' is empty"),
        ({"q": "x", "a": ""}, "'a' is empty"),
        ({"q": "x", "a": float("nan")}, "'a' is empty"),  # json.dumps writes NaN, and so does pandas
        ({"q": " \n", "a": "x"}, "'q' is empty"),
        ({"q": "a \ud83d b", "a": "x"}, "'q' holds half a character (\\ud83d) at character 3"),
        ({"q": "x", "a": ["y"]}, "'a' is ['y'], not text"),
        ({"q": "x", "a": True}, "'a' is True, not text"),
        ({"q": {"k": "v" * 99}, "a": "x"}, "..., not text"),
    ],
)
def test_a_bad_pair_is_reported_by_line(jsonl, row, problem):
    path = jsonl({"q": "fine", "a": "fine"}, row)
    message = error_of(pair(path))
    assert message.startswith(f"A row of the data cannot be used. {path} line 2: ")
    assert problem in message


def test_bad_training_and_evaluation_rows_are_counted_together(jsonl):
    good, bad = {"q": "1", "a": "2"}, {"q": "1", "a": ""}
    dev = jsonl(good, bad, bad, name="dev.jsonl")
    path = jsonl(bad, good, bad)
    message = error_of(pair(path, eval=dev))
    assert message == (
        f"4 rows of the data cannot be used. {path} line 1: 'a' is empty; {path} line 3: 'a' is empty; {dev} line 2: "
        "'a' is empty; and 1 more."
    )


@pytest.mark.parametrize(
    ("talk", "problem"),
    [
        ("hi", "'m' is text, which is not a list of messages: 'hi'"),
        ("[{'role': 'user'}]", "which is not a list of messages; write it as JSON, with double quotation marks"),
        (["hi"], "is not a list of messages"),
        ([], "no message has the role assistant"),
        ([{"role": "user", "content": "hi"}], "no message has the role assistant"),
        ([{"speaker": "human", "value": "hi"}], "message 1 has no text under 'role' (it has speaker, value)"),
        ([{"role": "user", "text": "hi"}], "message 1 has no text under 'content' (it has role, text)"),
        (
            [{"role": "narrator", "content": "hi"}],
            "no message has the role assistant, so there is nothing to learn (the roles",
        ),
        ([{"role": "asistant", "content": "hi"}], "message 1 has the role 'asistant'; did you mean 'assistant'?"),
        (
            [{"role": "user", "content": {"a": 1}}],
            "'content' of message 1 is {'a': 1}, not text or a list of text parts",
        ),
        ([{"role": "user", "content": [{"type": "text"}]}], "'content' of message 1 has a text part without text"),
        (
            [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}],
            "'content' of message 1 has a part of type 'image_url'; only text can be learnt from",
        ),
        ([{"role": "assistant", "content": None}], "message 1, of the assistant, is empty: its content is null"),
        ([{"role": "user", "content": None}], "message 1, of the user, has no content: it is null"),
        (
            [{"role": "assistant", "content": "x", "weight": 0.5}],
            "message 1 has weight 0.5, and a message is either learnt (1)",
        ),
        (
            [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}],
            "message 2, of the assistant, is empty",
        ),
        (
            [{"role": "assistant", "content": "\ude00"}],
            "line 1: 'content' of message 1 holds half a character (\\ude00)",
        ),
        (
            [{"role": "assistant", "content": "x", "tool_calls": [1]}],
            "tool_calls of message 1 is [1], not a list of calls",
        ),
    ],
)
def test_bad_conversations_are_reported(jsonl, talk, problem):
    assert problem in error_of(DataConfig(train=jsonl({"m": talk}), messages="m"))


@pytest.mark.parametrize("score", ["high", "nan", "inf", True, [1]])
def test_a_score_must_be_a_number(jsonl, score):
    data = DataConfig(train=jsonl({"t": "x", "s": 1}, {"t": "x", "s": score}), text="t", score="s")
    assert "line 2: 's' is " in error_of(data, "regression")
    assert "not a number" in error_of(data, "regression")


# --- labels -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "names"),
    [
        (["1", "0", "1"], ("0", "1")), ([2, 10, 1], ("1", "2", "10")), ([1.0, 0.0], ("0", "1")),
        (["not_entailment", "entailment"], ("entailment", "not_entailment")), (["b ", "a"], ("a", "b")),
        ([True, False], ("False", "True")), ([-1, 1], ("-1", "1")), (["1.0", "0.0", 1], ("0", "1")),
    ],
)  # fmt: skip
def test_labels_are_found_in_the_training_rows(jsonl, values, names):
    path = jsonl(*({"t": "x", "l": value} for value in values))
    examples = load_examples(classify(path), "classification")
    assert examples.label_names == names
    assert examples.id2label == dict(enumerate(names))
    assert examples.num_labels == len(names)
    assert [names[i] for i in examples.train["labels"]] == [label_key(value) for value in values]


def test_given_labels_decide_the_order(jsonl):
    path = jsonl({"t": "x", "l": "good"}, {"t": "x", "l": "bad"})
    assert load_examples(classify(path, labels=["good", "bad", "odd"]), "classification").train["labels"][:] == [0, 1]
    assert load_examples(classify(path, labels=["bad", "good"]), "classification").train["labels"][:] == [1, 0]


@pytest.mark.parametrize("values", [("0", 1), ("0.0", "1.0")])
def test_numbers_are_indices_of_the_given_names(jsonl, values):
    path = jsonl(*({"t": "x", "l": value} for value in values))
    examples = load_examples(classify(path, labels=["negative", "positive"]), "classification")
    assert examples.train["labels"][:] == [0, 1]
    assert examples.id2label == {0: "negative", 1: "positive"}


def test_an_unknown_label_is_reported_by_line(jsonl):
    path = jsonl({"t": "x", "l": "yes"}, {"t": "x", "l": "no"})
    dev = jsonl({"t": "x", "l": "yes"}, {"t": "x", "l": "noo"}, name="dev.jsonl")
    message = error_of(classify(path, eval=dev), "classification")
    assert f"{dev} line 2: the label 'noo' is not one of no, yes" in message
    assert "did you mean 'no'?" in message
    assert "line 1: the label 'yes' is not one of a, b" in error_of(classify(path, labels=["a", "b"]), "classification")
    numbers = jsonl({"t": "x", "l": 0}, {"t": "x", "l": 2}, name="numbers.jsonl")
    assert "line 2: the label 2 is not one of a, b" in error_of(classify(numbers, labels=["a", "b"]), "classification")


def test_an_empty_label_is_a_bad_row(jsonl):
    path = jsonl({"t": "x", "l": 0}, {"t": "x", "l": 1}, {"t": "x", "l": ""}, {"t": "x", "l": None}, {"t": "x"})
    message = error_of(classify(path), "classification")
    assert message.startswith("3 rows")
    assert f"{path} line 5: the column 'l' is missing" in message


def test_a_missing_label_is_not_a_class(jsonl):
    nan = float("nan")
    path = jsonl({"t": "x", "l": "neg"}, {"t": "x", "l": nan}, {"t": "x", "l": "pos"})
    assert f"{path} line 2: 'l' is empty" in error_of(classify(path), "classification")
    one = jsonl({"t": "x", "l": "neg"}, {"t": "x", "l": nan}, name="one.jsonl")
    assert f"{one} line 2: 'l' is empty" in error_of(classify(one), "classification")


def test_bytes_are_not_a_label(tmp_path):
    path = tmp_path / "d.parquet"
    pq.write_table(pa.table({"t": ["a", "b"], "l": [b"x", b"y"]}), path)
    for more in ({}, {"labels": ["x", "y"]}):
        message = error_of(classify(str(path), **more), "classification")
        assert "row 1: 'l' is b'x', not the name or number of a class" in message


def test_half_a_character_is_not_a_label(jsonl):
    path = jsonl({"t": "x", "l": "a"}, {"t": "x", "l": "b"}, {"t": "x", "l": "\ud83d"})
    assert f"{path} line 3: 'l' holds half a character (\\ud83d)" in error_of(classify(path), "classification")


def test_a_label_inside_a_column(jsonl):
    path = jsonl(*({"t": "x", "meta": {"l": value}} for value in ("pos", "neg", "pos")))
    examples = load_examples(DataConfig(train=path, text="t", label="meta.l"), "classification")
    assert examples.label_names == ("neg", "pos")
    assert examples.train["labels"][:] == [1, 0, 1]


def test_columns_without_usable_labels_are_refused(jsonl):
    one = jsonl({"t": "x", "l": "a"}, {"t": "x", "l": "a"})
    assert "all rows of" in error_of(classify(one), "classification")
    assert "data.labels" in error_of(classify(one), "classification")
    scores = jsonl({"t": "x", "l": "1.5"}, {"t": "x", "l": "2"})
    assert "use task: regression" in error_of(classify(scores), "classification")
    scores = jsonl({"t": "x", "l": "5.0"}, {"t": "x", "l": "3.8"}, {"t": "x", "l": "0.0"}, name="scores.jsonl")
    assert "use task: regression" in error_of(classify(scores), "classification")
    with pytest.raises(BALoraError, match=r"1,001 different values; is it a label\?"):
        find_labels(range(1001), "l", "d.jsonl")


def test_a_message_lists_only_the_first_ten_classes():
    message = LabelSet(tuple(f"class{i}" for i in range(50))).unknown("?")
    assert "class9, ..." in message
    assert "class10" not in message


def test_names_that_are_numbers_are_not_indices():
    labels = LabelSet(("1", "2"))
    assert [labels.id_of(v) for v in (1, "2", 0)] == [0, 1, None]


def test_names_with_a_decimal_point_are_matched_exactly_first():
    labels = LabelSet(("2.0", "1.0"))
    assert [labels.id_of(v) for v in ("2.0", "1.0", 1.0)] == [0, 1, 1]


def test_hub_labels_keep_their_names(monkeypatch):
    features = datasets.Features({"t": datasets.Value("string"), "l": datasets.ClassLabel(names=["neg", "pos"])})
    rows = datasets.Dataset.from_dict({"t": ["a", "b"], "l": [1, 1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    examples = load_examples(classify("glue"), "classification")
    assert examples.label_names == ("neg", "pos")
    assert examples.train["labels"][:] == [1, 1]
    hidden = datasets.Dataset.from_dict({"t": ["a", "b"], "l": [1, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: hidden)
    assert "glue (train) row 2: the label -1 is not one of neg, pos" in error_of(classify("glue"), "classification")


@pytest.mark.parametrize(
    ("values", "mark"),
    [
        ([0, 1, 2, -1], -1), ([-1.0, 0, 1, 2], -1.0), ([1, 2, 3, "-1"], "-1"), ([0, 1, -100], -100), (["a", "b", -1], -1),
        (["a", "b", "-"], "-"), (["a", "b", "--"], "--"), (["1.0", "nan", "0.0"], "nan"), (["a", "b", "NaN"], "NaN"),
        (["a", "b", "None"], "None"), (["a", "b", "N/A"], "N/A"), (["a", "b", "<NA>"], "<NA>"), ([-1, -1], -1),
    ],
)  # fmt: skip
def test_a_placeholder_is_no_class(jsonl, values, mark):
    path = jsonl(*({"t": "x", "l": value} for value in values))
    message = error_of(classify(path), "classification")
    line = values.index(mark) + 1
    assert f"{path} line {line}: the label {mark!r} usually marks a row without a label" in message
    assert "if a label is a class, name all classes in data.labels" in message


def test_a_placeholder_named_in_the_config_is_a_class(jsonl):
    path = jsonl(*({"t": "x", "l": value} for value in ("-", "nan", "None", "-")))
    examples = load_examples(classify(path, labels=["-", "nan", "None"]), "classification")
    assert examples.train["labels"][:] == [0, 1, 2, 0]


def test_a_text_of_spaces_is_an_empty_label(jsonl):
    path = jsonl(*({"t": "x", "l": value} for value in ("a", "b", "  ")))
    assert f"{path} line 3: 'l' is empty" in error_of(classify(path), "classification")


@pytest.mark.parametrize("value", ["--1", "\u2212\u22121", "-- 1"])
def test_a_mistyped_number_is_no_class(jsonl, value):
    path = jsonl(*({"t": "x", "l": label} for label in (value, "2", "1")))
    message = error_of(classify(path), "classification")
    assert f"{path} line 1: the label {value!r} looks like a mistyped number" in message


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([-1, 0, 1], "-1 is taken for a class"), ([-1, 0], "-1 is taken for a class"), ([-1, 1], None), ([0, 1], None),
        ([-2, -1, 0, 1, 2], None), (["0", "1", "label"], "holds numbers and also 'label'"), (["a", "b", "?"], "'?' is taken for"),
        (["FAVOR", "AGAINST", "NONE"], "'NONE' is taken for a class"), (["a", "b"], None),
    ],
)  # fmt: skip
def test_a_doubtful_class_is_said(jsonl, caplog, values, said):
    path = jsonl(*({"t": f"x{number}", "l": value} for number, value in enumerate(values)))
    examples = load_examples(classify(path), "classification")
    assert examples.num_labels == len(values)
    assert (said in caplog.text) if said else not caplog.text


@pytest.mark.parametrize(
    "pair", [("Positive", "positive"), (True, "true"), ("Stra\u00dfe", "STRASSE"), ("e\u0301", "\u00e9")]
)
def test_classes_that_differ_by_case_only_are_refused(jsonl, pair):
    path = jsonl(*({"t": "x", "l": value} for value in (*pair, "other")))
    message = error_of(classify(path), "classification")
    assert "writes a class in several ways" in message
    assert repr(str(pair[0])) in message and repr(str(pair[1])) in message
    names = [str(value) for value in (*pair, "other")]
    assert load_examples(classify(path, labels=names), "classification").train["labels"][:] == [0, 1, 2]


@pytest.mark.parametrize("mark", [-1, "-", "nan"])
def test_an_evaluation_row_without_a_label_is_called_so(jsonl, mark):
    path = jsonl({"t": "x", "l": 0}, {"t": "y", "l": 1})
    dev = jsonl({"t": "z", "l": mark}, name="test.jsonl")
    message = error_of(classify(path, eval=dev), "classification")
    assert f"{dev} line 1: the label {mark!r} is not one of 0, 1 - it usually marks a row without a label" in message


def test_a_label_of_very_many_digits_is_no_number(jsonl):
    path = jsonl(*({"t": "x", "l": value} for value in ("1" * 5000, "a" * 5000)))
    assert load_examples(classify(path), "classification").num_labels == 2


# --- training and evaluation rows ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("evaluation", "warning"), [("train[2:4]", "1 of 2 evaluation rows"), ("train[3:5]", None)])
def test_evaluation_rows_that_are_also_training_rows_are_counted(jsonl, caplog, evaluation: str, warning: str | None):
    path = jsonl(*({"q": f"number {i}?", "a": str(i)} for i in range(5)))
    load_examples(pair(path, split="train[:3]", eval=evaluation), "generation")
    assert (warning in caplog.text) if warning else ("evaluation rows" not in caplog.text)
