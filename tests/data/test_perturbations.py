"""Perturbations: their effect on training rows, seeds and counts. Evaluation rows are unchanged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from balora.config.run_config import DataConfig, RunConfig
from balora.data.examples import load_examples
from balora.errors import BALoraError

CLASSES = ["no", "maybe", "yes"]


@pytest.fixture
def labelled(jsonl):
    """Source with 300 training rows, 100 of each class, and 10 evaluation rows."""
    rows = [{"t": f"row {i}", "l": CLASSES[i % 3]} for i in range(310)]
    return {"train": jsonl(*rows), "split": "train[:300]", "eval": "train[300:]", "text": "t", "label": "l"}


def load(source: dict, task: str = "classification", seed: int = 1, **perturbations):
    return load_examples(DataConfig(**source, **perturbations), task, seed)


def test_without_perturbations_the_rows_are_unchanged(labelled):
    examples = load(labelled)
    assert examples.perturbations is None
    assert examples.train["text"] == [f"row {i}" for i in range(300)]


def test_a_subsample_is_drawn_by_the_seed(labelled):
    share, number = load(labelled, subsample=0.1), load(labelled, subsample=30)
    assert share.train.to_list() == number.train.to_list()
    assert len(share.train) == 30
    assert load(labelled, subsample=30, seed=2).train.to_list() != number.train.to_list()
    places = [int(text.split()[1]) for text in number.train["text"]]
    assert places == sorted(set(places)), "without replacement, in the order of the source"


def test_a_fraction_of_one_is_all_rows_and_a_count_of_one_is_one_row(labelled):
    assert len(load(labelled, subsample=1.0).train) == 300
    assert len(load(labelled, subsample=1).train) == 1


@pytest.mark.parametrize("perturbation", [{"subsample": 0.5}, {"label_noise": 0.6}, {"duplicate": 0.5}])
def test_classes_as_text_are_perturbed_like_classes(labelled, perturbation):
    numbers, texts = load(labelled, **perturbation), load(labelled, task="seq2seq", **perturbation)
    assert texts.perturbations == numbers.perturbations
    assert texts.train["response"] == [texts.label_names[number] for number in numbers.train["labels"]]


def test_imbalance_keeps_fractions_of_classes(labelled):
    examples = load(labelled, imbalance={"no": 1.0, "maybe": 0.1, "yes": 0.001})
    named = Counter(examples.label_names[number] for number in examples.train["labels"])
    assert named == {"no": 100, "maybe": 10, "yes": 1}, "at least one row of a class stays"
    assert examples.perturbations["classes"] == dict(named)
    assert len(load(labelled, imbalance={"maybe": 0.5}).train) == 250, "all rows of a class that is not named stay"


def test_label_noise_chooses_all_other_classes_equally_often(labelled):
    clean, noisy = load(labelled), load(labelled, label_noise=0.6)
    pairs = list(zip(clean.train["labels"], noisy.train["labels"], strict=True))
    flipped = Counter(pair for pair in pairs if pair[0] != pair[1])
    assert sum(flipped.values()) == 180 == noisy.perturbations["labels_changed"]
    assert len(flipped) == 6
    assert min(flipped.values()) > 15, "30 expected of each"
    assert noisy.train["text"] == clean.train["text"]
    assert load(labelled, label_noise=0.6).digest == noisy.digest != clean.digest
    assert load(labelled, label_noise=0.6, seed=2).digest != noisy.digest


def test_duplicates_repeat_wrong_labels(labelled):
    noisy, both = load(labelled, label_noise=1.0), load(labelled, label_noise=1.0, duplicate={"share": 0.1, "times": 4})
    assert both.train.to_list()[:300] == noisy.train.to_list()
    extra = Counter(json.dumps(row) for row in both.train.to_list()[300:])
    assert set(extra.values()) == {3}
    assert len(extra) == 30
    assert set(extra) <= {json.dumps(row) for row in noisy.train.to_list()}
    assert both.perturbations == {
        "rows_given": 300, "labels_disturbed": 300, "labels_changed": 300, "rows_added": 90, "rows": 390,
        "classes": both.perturbations["classes"],
    }  # fmt: skip
    assert sum(both.perturbations["classes"].values()) == 390


def test_evaluation_rows_are_unchanged(labelled):
    clean = load(labelled)
    hard = load(labelled, subsample=0.5, imbalance={"no": 0.1}, label_noise=1.0, duplicate=1.0)
    assert hard.eval.to_list() == clean.eval.to_list()


def test_label_noise_exchanges_scores(jsonl):
    source = {"train": jsonl(*[{"t": f"row {i}", "s": i} for i in range(40)]), "text": "t", "score": "s"}
    clean, noisy = load(source, "regression"), load(source, "regression", label_noise=0.5)
    moved = [a != b for a, b in zip(clean.train["labels"], noisy.train["labels"], strict=True)]
    assert sum(moved) == 20 == noisy.perturbations["labels_changed"]
    assert sorted(noisy.train["labels"]) == sorted(clean.train["labels"])


def test_label_noise_exchanges_responses(jsonl):
    source = {"train": jsonl(*[{"q": f"q{i}", "a": f"a{i // 2}"} for i in range(40)]), "prompt": "q", "response": "a"}
    noisy = load(source, "generation", label_noise=1.0)
    assert noisy.train["prompt"] == [f"q{i}" for i in range(40)]
    assert sorted(noisy.train["response"]) == sorted(f"a{i // 2}" for i in range(40))
    changed = sum(f"a{i // 2}" != answer for i, answer in enumerate(noisy.train["response"]))
    assert noisy.perturbations["labels_disturbed"] == 40
    assert noisy.perturbations["labels_changed"] == changed


def test_label_noise_exchanges_the_last_answers_of_conversations(jsonl):
    def talk(i: int) -> list[dict]:
        turns = [("user", f"q{i}"), ("assistant", f"a{i}"), ("user", f"r{i}"), ("assistant", f"b{i}"), ("user", "bye")]
        return [{"role": role, "content": content} for role, content in turns]

    source = {"train": jsonl(*[{"m": talk(i)} for i in range(6)]), "messages": "m"}
    noisy = load(source, "generation", label_noise=1.0)
    for i, messages in enumerate(noisy.train["messages"]):
        texts = [message["content"] for message in messages]
        assert texts[:3] == [f"q{i}", f"a{i}", f"r{i}"]
        assert texts[3] != f"b{i}"
        assert texts[4] == "bye"


@pytest.mark.parametrize(
    ("perturbations", "words"),
    [
        ({"subsample": 301}, ["data.subsample", "301", "300"]),
        ({"imbalance": {"yess": 0.1}}, ["data.imbalance", "'yess'", "'yes'"]),
        ({"label_noise": 0.001}, ["data.label_noise", "0 rows"]),
        ({"duplicate": 0.001}, ["data.duplicate", "0 rows"]),
    ],
)
def test_an_impossible_perturbation_is_reported(labelled, perturbations, words):
    with pytest.raises(BALoraError) as error:
        load(labelled, **perturbations)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("data", "task", "words"),
    [
        ({"subsample": 0}, "classification", ["data.subsample", "fraction between 0 and 1"]),
        ({"subsample": 2.5}, "classification", ["data.subsample"]),
        ({"imbalance": {"a": 0}}, "classification", ["data.imbalance", "above 0"]),
        ({"imbalance": 0.1}, "classification", ["data.imbalance", "for each class"]),
        ({"label_noise": 1.5}, "classification", ["data.label_noise"]),
        ({"duplicate": {"share": 0.1, "times": 1}}, "classification", ["data.duplicate", "at least 2"]),
        ({"duplicate": {"shar": 0.1}}, "classification", ["data.duplicate"]),
        ({"imbalance": {"a": 0.5}}, "generation", ["data.imbalance", "classification"]),
        ({"label_noise": 0.5}, "generation", ["data.label_noise", "plain text"]),
    ],
)
def test_a_wrong_perturbation_is_reported_before_data_is_read(data, task, words):
    columns = {"text": "t", **({"label": "l"} if task == "classification" else {})}
    with pytest.raises(BALoraError) as error:
        RunConfig.from_dict({"model": "m", "task": task, "data": {"train": "d.tsv", **columns, **data}, "output": "o"})
    for word in words:
        assert word in str(error.value)


def test_the_resolved_config_keeps_the_perturbations(tmp_path: Path):
    data = {
        "train": "d.tsv",
        "text": "t",
        "label": "l",
        "imbalance": {"a": 1, "b": 0.5},
        "duplicate": 0.2,
        "subsample": 9,
    }
    config = RunConfig.from_dict({"model": "m", "task": "classification", "data": data, "output": "o"})
    assert RunConfig.from_dict(config.to_dict()) == config
    assert config.data.duplicate == {"share": 0.2, "times": 2}


def test_a_run_records_its_perturbations(balora, config: Path, tmp_path: Path):
    outcome = balora("train", config, "data.label_noise=0.5", "data.subsample=12", "training.max_steps=1")
    assert outcome.status == 0, outcome.err
    assert "Data perturbations: 24 rows given, 12 drawn, 6 labels disturbed" in outcome.out
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["data"]["conditions"]["labels_disturbed"] == 6
    assert "6 labels disturbed" in (tmp_path / "run" / "README.md").read_text()
    assert record["parameters"]["trainable"] > 0
    assert record["notices"] == []
