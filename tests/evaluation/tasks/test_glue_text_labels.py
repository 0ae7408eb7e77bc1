"""GLUE with a model that writes text labels: prompts, labels and metrics equal those of the training run."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tokenizers.processors import TemplateProcessing

from balora import BALoraError
from balora.config.run_config import RunConfig
from balora.evaluation import EvaluationOptions, evaluate
from balora.evaluation.engines.predictors import NO_CLASS
from balora.training.run import run
from evaluation_models import generator_at
from tiny import tiny_t5, tiny_tokenizer

CLASSES = ["entailment", "neutral", "contradiction"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("t5")
    tiny_t5().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 2)])
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    draw = random.Random(0)
    path = tmp_path_factory.mktemp("rows") / "mnli.jsonl"
    lines = []
    for _ in range(40):
        label, noise = draw.randint(0, 2), "".join(draw.choices("uvwxyz", k=draw.randint(1, 6)))
        lines.append({"premise": f"{'abc'[label]} {noise}", "hypothesis": noise, "label": label, "score": 2.0 * label})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def train(base: Path, rows: Path, output: Path, steps: int, **data) -> dict[str, float]:
    values = {
        "model": str(base), "task": "seq2seq", "output": str(output), "method": {"name": "full"}, "regularization": False,
        "data": {
            "train": str(rows), "eval": str(rows), "text": ["premise", "hypothesis"],
            "prompt_template": "mnli hypothesis: {text_pair} premise: {text}", **data,
        },
        "training": {
            "use_cpu": True, "max_steps": steps, "learning_rate": 1e-2, "per_device_train_batch_size": 16, "report_to": [],
            "per_device_eval_batch_size": 20, "save_strategy": "no", "disable_tqdm": True,
        },
    }  # fmt: skip
    return run(RunConfig.from_dict(values)).metrics


def measure(model: Path, task: str, rows: Path, folder: Path):
    how = EvaluationOptions(data={task: str(rows)}, device="cpu", batch_size=7)
    return evaluate(model, [task], output=folder, options=how).results[task]


def test_text_label_metrics_equal_those_of_the_run(base: Path, rows: Path, tmp_path: Path) -> None:
    # Labels of one letter, which a tiny model learns quickly. Numbers mean the order of the task's classes.
    metrics = train(base, rows, tmp_path / "run", 60, label="label", labels=["0", "1", "2"])
    result = measure(tmp_path / "run", "mnli", rows, tmp_path / "out")
    scores = result["scores"]
    assert metrics["eval_accuracy"] > 0.4, "a model that has learnt nothing makes the comparison meaningless"
    for name in ("accuracy", "matthews", "f1_macro", "unreadable"):
        assert scores[name] == pytest.approx(metrics[f"eval_{name}"]), name
    for sample in result["samples"]:
        assert sample["predicted"] == dict(zip("012", CLASSES, strict=True)).get(sample["output"], NO_CLASS)
    with pytest.raises(BALoraError, match="the model predicts classes"):
        measure(tmp_path / "run", "stsb", _as_stsb(rows, tmp_path), tmp_path / "out2")
    with pytest.raises(BALoraError, match=r"rte has the classes entailment, not_entailment, but the model has 0, 1, 2"):
        measure(tmp_path / "run", "rte", _as_rte(rows, tmp_path), tmp_path / "out3")


def test_scores_written_as_text_are_parsed(base: Path, rows: Path, tmp_path: Path) -> None:
    metrics = train(base, rows, tmp_path / "run", 60, score="score")
    result = measure(tmp_path / "run", "stsb", _as_stsb(rows, tmp_path), tmp_path / "out")
    assert metrics["eval_unreadable"] < 1
    assert result["scores"]["mse"] == pytest.approx(metrics["eval_mse"])
    assert result["scores"]["unreadable"] == metrics["eval_unreadable"]


def test_a_model_that_was_not_trained_on_labels_is_refused(base: Path, rows: Path, tmp_path: Path) -> None:
    for model in (base, generator_at(tmp_path / "writer")):
        with pytest.raises(
            BALoraError, match=r"The tasks of GLUE need a (model that was trained to classify|classifier)"
        ):
            measure(model, "mnli", rows, tmp_path / f"out-{model.name}")


def _as_stsb(rows: Path, folder: Path) -> Path:
    return _renamed(rows, folder / "stsb.jsonl", lambda row: {"score": row["score"]})


def _as_rte(rows: Path, folder: Path) -> Path:
    return _renamed(rows, folder / "rte.jsonl", lambda row: {"label": row["label"] % 2})


def _renamed(rows: Path, path: Path, more) -> Path:
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    made = [{"sentence1": row["premise"], "sentence2": row["hypothesis"], **more(row)} for row in lines]
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path
