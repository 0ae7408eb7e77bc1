"""GLUE: columns, classes and metrics. No row is predicted twice."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from balora import BALoraError
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.engines.predictors import ClassifierPredictor, match_classes
from balora.evaluation.scoring.metrics import classification_metrics, regression_metrics
from balora.evaluation.tasks.glue import DATASETS
from evaluation_models import classifier_at, generator_at
from tiny import tiny_bert, tiny_tokenizer
from trained_runs import trained_run

NLI = ["entailment", "neutral", "contradiction"]
SENTENCES = [f"sentence {'very ' * (number % 5)}number {number}." for number in range(30)]


def write(path: Path, columns: list[str], rows: list[list[object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(map(str, line)) + "\n" for line in [columns, *rows]))
    return path


@pytest.fixture
def sst2(tmp_path: Path) -> Path:
    return write(tmp_path / "sst2.tsv", ["sentence", "label"], [[s, i % 2] for i, s in enumerate(SENTENCES)])


def measure(model: Path, task: str, data: Path, folder: Path, **options):
    how = EvaluationOptions(data={task: str(data)}, device="cpu", **options)
    return evaluate(model, [task], output=folder, options=how).results[task]


def test_metrics_against_manual_counts() -> None:
    truth = ["a"] * 6 + ["b"] * 3 + ["c"]
    found = ["a", "a", "a", "b", "b", "c", "b", "b", "a", "a"]
    scores = classification_metrics(truth, found, ["a", "b", "c", "d"])
    assert scores["accuracy"] == 0.5
    assert scores["recall"] == {"a": 0.5, "b": pytest.approx(2 / 3), "c": 0.0, "d": None}
    assert scores["confusion"] == [[3, 2, 1, 0], [1, 2, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_matthews_and_pearson_against_their_formulas() -> None:
    rng = np.random.default_rng(0)
    truth, found = rng.integers(0, 2, 50), rng.integers(0, 2, 50)
    names = np.array(["no", "yes"])
    scores = classification_metrics(list(names[truth]), list(names[found]), ["no", "yes"])
    assert scores["matthews"] == pytest.approx(np.corrcoef(truth, found)[0, 1])
    x, y = rng.normal(size=20), rng.normal(size=20)
    assert regression_metrics(list(x), list(y))["pearson"] == pytest.approx(np.corrcoef(x, y)[0, 1])
    assert regression_metrics([1.0, 2.0], [3.0, 3.0])["pearson"] is None


def test_predictions_are_those_of_the_model(tmp_path: Path, sst2: Path) -> None:
    model = classifier_at(tmp_path / "m", ["LABEL_0", "LABEL_1"])
    result = measure(model, "sst2", sst2, tmp_path / "out", batch_size=7)
    plain, tokenizer = AutoModelForSequenceClassification.from_pretrained(model), tiny_tokenizer()
    for sample, sentence in zip(result["samples"], SENTENCES, strict=True):
        with torch.no_grad():
            logits = plain(**tokenizer(sentence, return_tensors="pt")).logits[0]
        torch.testing.assert_close(torch.tensor(sample["output"]), logits, atol=1e-4, rtol=1e-4)
        assert sample["predicted"] == ["negative", "positive"][int(logits.argmax())]
    right = sum(s["label"] == s["predicted"] for s in result["samples"])
    assert result["scores"]["accuracy"] == right / 30


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    rows = [[f"p {i}", f"h {i}", NLI[i % 3]] for i in range(12)]
    data = write(tmp_path / "mnli.tsv", ["premise", "hypothesis", "label"], rows)
    model = classifier_at(tmp_path / "m", ["contradiction", "entailment", "neutral"])
    result = measure(model, "mnli", data, tmp_path / "out")
    for sample in result["samples"]:
        expected = ["contradiction", "entailment", "neutral"][int(np.argmax(sample["output"]))]
        assert sample["predicted"] == expected


def test_a_model_with_other_classes_is_refused(tmp_path: Path, sst2: Path) -> None:
    model = classifier_at(tmp_path / "m", ["red", "green"])
    with pytest.raises(BALoraError, match=r"sst2 has the classes negative, positive, but the model has red, green"):
        measure(model, "sst2", sst2, tmp_path / "out")
    with pytest.raises(BALoraError, match="need a classifier"):
        measure(generator_at(tmp_path / "w"), "sst2", sst2, tmp_path / "out2")


def test_a_second_call_predicts_only_new_rows(tmp_path: Path, sst2: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = classifier_at(tmp_path / "m", ["0", "1"])
    measure(model, "sst2", sst2, tmp_path / "out", limit=10)
    row_counts = []
    predict = ClassifierPredictor.predict

    def counted(self, rows):
        row_counts.append(len(rows))
        return predict(self, rows)

    monkeypatch.setattr(ClassifierPredictor, "predict", counted)
    result = measure(model, "sst2", sst2, tmp_path / "out")
    assert row_counts == [20] and result["scores"]["rows"] == 30
    fresh = measure(model, "sst2", sst2, tmp_path / "fresh")
    assert fresh["scores"] == result["scores"]
    measure(model, "sst2", sst2, tmp_path / "out")
    assert row_counts == [20, 30]


def test_results_of_another_model_are_not_continued(tmp_path: Path, sst2: Path) -> None:
    measure(classifier_at(tmp_path / "m", ["0", "1"]), "sst2", sst2, tmp_path / "out")
    other = classifier_at(tmp_path / "other", ["0", "1"], seed=1)
    with pytest.raises(BALoraError, match="another model"):
        measure(other, "sst2", sst2, tmp_path / "out")


@pytest.mark.parametrize(
    ("task", "classes", "column"), [("sst2", ["0", "1"], "sentence"), ("stsb", ["score"], "sentence1")]
)
def test_outputs_that_are_not_finite_count_as_wrong(
    tmp_path: Path, monkeypatch, task: str, classes, column: str
) -> None:
    rows = [[s, "b", i % 2] for i, s in enumerate(SENTENCES)]
    data = write(tmp_path / "data.tsv", [column, "sentence2", "score" if task == "stsb" else "label"], rows)
    model = classifier_at(tmp_path / "m", classes)
    predict = ClassifierPredictor.predict

    def broken(self, rows):
        for place, logits in predict(self, rows):
            yield place, [float("nan")] * len(logits) if place < 3 else logits

    monkeypatch.setattr(ClassifierPredictor, "predict", broken)
    messages: list[str] = []
    options = EvaluationOptions(data={task: str(data)}, device="cpu")
    scores = []
    for _ in range(2):  # from the model, then from the journal
        result = evaluate(model, [task], output=tmp_path / "out", options=options, say=messages.append).results[task]
        scores.append(result["scores"])
    assert scores[0] == scores[1] and scores[0]["not_finite"] == 3
    assert sum("3 of 30 rows have outputs that are NaN" in line for line in messages) == 2
    if task == "sst2":
        assert [sample["predicted"] for sample in result["samples"][:3]] == ["(no class)"] * 3
        assert np.sum(scores[0]["confusion"]) == 27
    else:
        found = [-1.0] * 3 + [sample["output"][0] for sample in result["samples"][3:]]
        assert scores[0]["pearson"] == pytest.approx(np.corrcoef(found, [i % 2 for i in range(30)])[0, 1])


def test_a_run_with_a_regression_head(tmp_path: Path) -> None:
    pairs = [[a, b, f"{i % 6}.5"] for i, (a, b) in enumerate(itertools.pairwise(SENTENCES))]
    data = write(tmp_path / "stsb.tsv", ["sentence1", "sentence2", "score"], pairs)
    run = trained_run(tmp_path / "run", tiny_bert(num_labels=1), "regression")
    result = measure(run.folder, "stsb", data, tmp_path / "out")
    found, truth = [s["output"][0] for s in result["samples"]], [s["label"] for s in result["samples"]]
    assert result["scores"]["pearson"] == pytest.approx(np.corrcoef(found, truth)[0, 1])
    assert result["identity"]["model"]["kind"] == "run"
    rte = write(tmp_path / "r.tsv", ["sentence1", "sentence2", "label"], [["a", "b", 0]])
    with pytest.raises(BALoraError, match="predicts one score"):
        measure(run.folder, "rte", rte, tmp_path / "rte")


@pytest.mark.parametrize(
    ("task", "file", "columns", "row", "label"),
    [
        ("mrpc", "MRPC/dev.tsv", "Quality/#1 ID/#2 ID/#1 String/#2 String", "1/5/6/a/b", "equivalent"),
        ("qqp", "QQP/dev.tsv", "id/qid1/qid2/question1/question2/is_duplicate", "0/1/2/a/b/0", "not_duplicate"),
        ("qnli", "QNLI/dev.tsv", "index/question/sentence/label", "0/a/b/not_entailment", "not_entailment"),
        ("rte", "RTE/dev.tsv", "index/sentence1/sentence2/label", "0/a/b/entailment", "entailment"),
        ("cola", "CoLA/dev.tsv", "gj04/1//A sentence.", "gj04/0/*/Other.", "acceptable"),
        ("mnli", "MNLI/dev_matched.tsv", "sentence1/sentence2/gold_label", "a/b/neutral", "neutral"),
        ("mnli_mismatched", "MNLI/dev_mismatched.tsv", "sentence1/sentence2/gold_label", "a/b/neutral", "neutral"),
    ],
)
def test_the_official_files_are_read(tmp_path: Path, task: str, file: str, columns: str, row: str, label: str) -> None:
    write(tmp_path / "glue" / file, columns.split("/"), [row.split("/")])
    write(tmp_path / "glue" / Path(file).parent / "train.tsv", ["wrong"], [["file"]])
    model = classifier_at(tmp_path / "m", list(DATASETS[task].classes))
    options = EvaluationOptions(data={"glue": str(tmp_path / "glue")}, device="cpu")
    result = evaluate(model, [task], output=tmp_path / "out", options=options).results[task]
    assert result["samples"][0]["label"] == label
    assert len(result["samples"]) == (2 if task == "cola" else 1)


def test_the_default_rows_are_the_validation_rows_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requested = []

    def hub(name, configuration, split, key):
        requested.append((name, configuration, split))
        features = datasets.Features({
            "premise": datasets.Value("string"), "hypothesis": datasets.Value("string"),
            "label": datasets.ClassLabel(names=NLI), "idx": datasets.Value("int32"),
        })  # fmt: skip
        return datasets.Dataset.from_list(
            [{"premise": "a", "hypothesis": "b", "label": 2, "idx": 0}], features=features
        )

    monkeypatch.setattr("balora.evaluation.data.load_hub_dataset", hub)
    model = classifier_at(tmp_path / "m", NLI)
    result = evaluate(model, ["mnli", "mnli_mismatched"], output=tmp_path / "out").results["mnli_mismatched"]
    assert requested == [
        ("nyu-mll/glue", "mnli", "validation_matched"),
        ("nyu-mll/glue", "mnli", "validation_mismatched"),
    ]
    assert result["samples"][0]["label"] == "contradiction"


def test_rows_without_labels_are_refused(tmp_path: Path) -> None:
    data = write(tmp_path / "test.tsv", ["sentence", "label"], [["a", -1]])
    with pytest.raises(BALoraError, match="no labels"):
        measure(classifier_at(tmp_path / "m", ["0", "1"]), "sst2", data, tmp_path / "out")


def test_the_command_prints_scores_and_writes_results(balora, tmp_path: Path, sst2: Path) -> None:
    model = classifier_at(tmp_path / "m", ["0", "1"])
    outcome = balora("evaluate", model, "--tasks", "sst2", "--data", f"sst2={sst2}", "--output", tmp_path / "out")
    assert outcome.status == 0, outcome.err
    scores = json.loads((tmp_path / "out" / "sst2.json").read_text())["scores"]
    assert f"accuracy {scores['accuracy']:.4f}" in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--tasks", "sst2", "--data", "sst2"], ["TASK=PATH"]),
        (["--tasks", "sst2", "--data", "sst2=absent.tsv"], ["absent.tsv"]),
        (["--tasks", "sst2", "--data", "sts2=x.tsv"], ["'sts2'", "Did you mean 'sst2'"]),
        (["--tasks", "sst2", "--limit", "0"], ["limit", "at least 1"]),
        (["--tasks", "sst2", "--k", "one"], ["--k"]),
        (["--tasks", "sst2", "--samples", "4"], ["temperature"]),
        (["--tasks", "sst2"], ["nyu-mll/glue", "--data TASK=FILE"]),
    ],
)
def test_a_mistake_is_reported_without_a_traceback(
    balora, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    model = classifier_at(tmp_path / "m", ["0", "1"])
    outcome = balora("evaluate", model, *arguments, "--output", tmp_path / "out")
    assert outcome.status == 2 and "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err, outcome.err


def test_classes_of_a_model_are_matched_without_regard_to_case(caplog):
    classes = ["entailment", "neutral", "contradiction"]
    assert match_classes(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], classes, "mnli") == classes[::-1]
    assert "contradiction = CONTRADICTION" in caplog.text
    caplog.clear()
    assert match_classes(classes[::-1], classes, "mnli") == classes[::-1]
    assert match_classes(["pos", "neg"], ["negative", "positive"], "sst2") == ["positive", "negative"]
    with pytest.raises(BALoraError, match="has the classes"):
        match_classes(["POS", "other"], ["negative", "positive"], "sst2")
