"""Table 3: the noisier start, and what is said of the gains on either start."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification

from balora.experiments.compare import Comparison, Row, summarise
from balora.experiments.reproduce import EXPERIMENTS, Places, Request, noisy
from balora.experiments.reproduce.prepare import read_about
from balora.experiments.reproduce.table3 import BASELINE, show
from tiny import tiny_bert, tiny_tokenizer

TABLE3 = EXPERIMENTS["table3"]


def comparison(values: dict[str, tuple[float, ...]], score: str) -> Comparison:
    rows = [
        Row(run=f"{name}-{seed}", variant=name, method="pissa", regularized=False, axes={}, seed=seed, status="finished",
            scores={score: value}, provenance={})
        for name, line in values.items() for seed, value in enumerate(line)
    ]  # fmt: skip
    return Comparison(groups=summarise(rows, [score], BASELINE), rows=rows, scores=[score], baseline=BASELINE, about={})


def test_the_gain_on_the_noisier_start_is_held_against_that_on_the_cleaner():
    made = {
        "cleaner_stsb": comparison({"pissa": (0.1, 0.2), "balora": (0.2, 0.3)}, "pearson"),
        "cleaner_sst2": comparison({"pissa": (0.8, 0.8), "balora": (0.8, 0.7)}, "accuracy"),
        "noisier_stsb": comparison({"pissa": (0.1, 0.1), "balora": (0.5, 0.6)}, "pearson"),
        "noisier_sst2": comparison({"pissa": (0.6, 0.6), "balora": (0.4, 0.7)}, "accuracy"),
    }
    text = "\n".join(show(made, TABLE3.small, Path()))
    assert "| cleaner | +0.1000 [+0.1000, +0.1000] | -0.0500 [-0.1000, +0.0000] | +0.0250 [" in text
    assert "| noisier | +0.4500 [+0.4000, +0.5000] | -0.0500 [-0.2000, +0.1000] | +0.2000 [+0.1000, +0.3000] |" in text
    assert "| noisier minus cleaner | +0.3500 [+0.3000, +0.4000] | +0.0000 [-0.2000, +0.2000] | +0.1750" in text
    assert "- stsb: on the noisier start the gain is larger by the bootstrap interval of 2 seeds (+0.3500" in text
    assert "- sst2: on the noisier start the gain is not told apart" in text
    assert "ours: none on either start" not in text, "these runs were not made"
    assert "The paper's numbers, not ours" in text


def test_half_an_experiment_shows_what_there_is():
    made = {"cleaner_stsb": comparison({"pissa": (0.1, 0.2), "balora": (0.2, 0.3)}, "pearson")}
    text = "\n".join(show(made, TABLE3.small, Path()))
    assert "| cleaner | +0.1000 [+0.1000, +0.1000] | - |" in text, "no mean over tasks that are not there"
    assert "on the noisier start" not in text


def test_the_noisier_start_is_an_encoder_that_noise_has_moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model = tmp_path / "model"
    tiny_bert().save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    data = tmp_path / "shared" / "data" / "glue" / "SST-2"
    data.mkdir(parents=True)
    lines = ["sentence\tlabel", *(f"a film number {number}\t{number % 2}" for number in range(60))]
    (data / "train.tsv").write_text("\n".join(lines) + "\n")
    monkeypatch.setattr(Places, "minilm", property(lambda self: str(model)))
    monkeypatch.setattr(noisy, "ROWS", 32)
    asked = Request(
        experiment=TABLE3, scale="small", output=tmp_path / "out", places=Places(shared=tmp_path / "shared")
    )
    assert asked.preparation is not None
    asked.preparation.ensure(asked.here)
    about = read_about(asked.here.prepared)
    assert about["rows"] == 32
    assert about["weights_moved"] > 1e-4
    made = Path(noisy.noisy_minilm(asked.here))
    assert sorted(path.name for path in asked.here.prepared.iterdir()) == ["about.json", made.name]
    before, after = AutoModel.from_pretrained(model), AutoModel.from_pretrained(made)
    assert not torch.equal(before.encoder.layer[0].output.dense.weight, after.encoder.layer[0].output.dense.weight)
    heads = [AutoModelForSequenceClassification.from_pretrained(made, num_labels=3).classifier.weight for _ in range(2)]
    assert not torch.equal(*heads), "the head of the noise is gone: each load draws a new one"
    asked.preparation.ensure(asked.here)  # once is enough
    assert read_about(asked.here.prepared) == about
    config = asked.config(TABLE3.small[-1])
    assert config["model"] == str(made)
    assert asked.missing(TABLE3.small[-1]) == [f"data.eval {data}/dev.tsv: no such file or folder"]
