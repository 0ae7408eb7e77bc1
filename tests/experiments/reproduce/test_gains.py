"""Table 3: the noisier pre-trained model, and the comparison of the gains on both models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from balora.experiments.reproduce import EXPERIMENTS, Paths, Request, noisier_model
from balora.experiments.reproduce.experiment import ABOUT
from comparisons import made_up
from tiny import tiny_bert, tiny_tokenizer

TABLE3 = EXPERIMENTS["table3"]


def test_the_gain_on_the_noisier_model_is_compared_with_that_on_the_cleaner():
    made = {
        "cleaner_stsb": made_up({"pissa": (0.1, 0.2), "balora": (0.2, 0.3)}, "pissa", "pearson"),
        "cleaner_sst2": made_up({"pissa": (0.8, 0.8), "balora": (0.8, 0.7)}, "pissa", "accuracy"),
        "noisier_stsb": made_up({"pissa": (0.1, 0.1), "balora": (0.5, 0.6)}, "pissa", "pearson"),
        "noisier_sst2": made_up({"pissa": (0.6, 0.6), "balora": (0.4, 0.7)}, "pissa", "accuracy"),
    }
    text = "\n".join(TABLE3.render(TABLE3.small, made, Path()))
    assert "| cleaner | +0.1000 | -0.0500 [" in text
    assert "| noisier | +0.4500 [" in text
    assert "| noisier minus cleaner | +0.3500 [" in text
    assert "- stsb: the two gains are not told apart (+0.3500" in text
    assert "- sst2: the two gains are not told apart" in text
    assert "over `ours: none` on either model" not in text, "these runs were not made"
    assert "The paper's numbers, not ours" in text


def test_an_unfinished_experiment_shows_the_finished_studies():
    made = {"cleaner_stsb": made_up({"pissa": (0.1, 0.2), "balora": (0.2, 0.3)}, "pissa", "pearson")}
    text = "\n".join(TABLE3.render(TABLE3.small, made, Path()))
    assert "| cleaner | +0.1000 | - |" in text, "no mean over tasks that are not there"
    assert "on the noisier model" not in text


def test_the_noisier_model_is_an_encoder_that_noise_has_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tmp_path / "model"
    tiny_bert().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    data = tmp_path / "shared" / "data" / "glue" / "SST-2"
    data.mkdir(parents=True)
    lines = ["sentence\tlabel", *(f"a film number {number}\t{number % 2}" for number in range(60))]
    (data / "train.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(Paths, "minilm", property(lambda self: str(model)))
    monkeypatch.setattr(noisier_model, "ROWS", 32)
    asked = Request(experiment=TABLE3, scale="small", output=tmp_path / "out", paths=Paths(shared=tmp_path / "shared"))
    assert asked.preparation is not None
    asked.preparation.ensure(asked.own_paths)
    about = json.loads((asked.own_paths.prepared / ABOUT).read_text())
    assert about["rows"] == 32
    assert about["weights_moved"] > 1e-4
    made = Path(noisier_model.noisier_minilm(asked.own_paths))
    assert sorted(path.name for path in asked.own_paths.prepared.iterdir()) == [".lock", "about.json", made.name]
    before, after = AutoModel.from_pretrained(model), AutoModel.from_pretrained(made)
    assert not torch.equal(before.encoder.layer[0].output.dense.weight, after.encoder.layer[0].output.dense.weight)
    heads = [AutoModelForSequenceClassification.from_pretrained(made, num_labels=3).classifier.weight for _ in range(2)]
    assert not torch.equal(*heads), "the head of the noise is gone: each load draws a new one"
    asked.preparation.ensure(asked.own_paths)  # once is enough
    assert json.loads((asked.own_paths.prepared / ABOUT).read_text()) == about
    config = asked.config(TABLE3.small[-1])
    assert config["model"] == str(made)
    assert asked.missing(TABLE3.small[-1]) == [f"data.eval {data}/dev.tsv: no such file or directory"]
