"""`anchor: generated` for encoder-decoders: the model answers inputs of the task, and is held on its own answers."""

from __future__ import annotations

import pytest
import torch
from test_anchored_training import Tokenizer

import balora
from balora import Anchors
from balora.anchoring.responses import sample_responses
from small_runs import OFF, flat, trainer
from tiny import tiny_bart

DATA = [{"input_ids": [3 + i, 4, 5 + i % 3], "labels": [6, 7 + i, 2]} for i in range(12)]


def run(folder, **changes):
    settings = {
        "config": OFF, "rows": DATA, "processing_class": Tokenizer(), "max_steps": 3,
        "anchors": Anchors.generated(16, tokens=8, share=1.0, weight=5.0), **changes,
    }  # fmt: skip
    return trainer(balora.adapt(tiny_bart(), "pissa", rank=4), folder, **settings)


def test_the_model_is_held_on_its_answers_to_the_tasks_inputs(tmp_path):
    first = run(tmp_path)
    metrics = first.train().metrics
    rows = first.anchor_term.rows.rows
    assert 8 <= len(rows) <= 16 and all(1 <= len(row["labels"]) <= 8 for row in rows)
    assert {tuple(row["input_ids"]) for row in rows} <= {tuple(row["input_ids"]) for row in DATA}
    assert all(2 not in row["labels"][:-1] for row in rows), "an answer ends at its end token"
    assert metrics["anchor_drift"] > 0
    again = run(tmp_path / "b")
    again.train()
    assert again.anchor_term.rows.rows == rows and torch.equal(flat(first.model), flat(again.model))


def test_anchors_lower_the_drift(tmp_path):
    drifts = {}
    for weight in (1e-6, 30.0):
        anchors = Anchors.generated(16, tokens=8, share=1.0, weight=weight)
        drifts[weight] = run(tmp_path / str(weight), anchors=anchors, max_steps=20).train().metrics["anchor_drift"]
    assert drifts[30.0] < 0.6 * drifts[1e-6]


def test_answers_follow_the_models_distribution():
    model = tiny_bart().eval()
    source = [5, 6, 7]
    rows = sample_responses(model, Tokenizer(), [source] * 1500, 1, seed=3, batch_size=500)
    first = torch.bincount(torch.tensor([row["labels"][0] for row in rows]), minlength=97) / len(rows)
    start = torch.tensor([[model.config.decoder_start_token_id]])
    with torch.no_grad():
        expected = model(torch.tensor([source]), decoder_input_ids=start).logits[0, -1].softmax(-1)
    assert float((first - expected).abs().sum()) / 2 < 0.13, (
        "total variation; 1500 draws from 97 tokens leave about 0.1"
    )
    other = sample_responses(model, Tokenizer(), [source] * 4, 1, seed=3)
    assert len(other) == 4


def test_forced_first_tokens_are_kept():
    model = tiny_bart().eval()
    model.generation_config.forced_bos_token_id = 9
    rows = sample_responses(model, Tokenizer(), [[5, 6, 7]] * 3, 4, seed=1)
    assert [row["labels"][0] for row in rows] == [9, 9, 9]
    assert model.generation_config.forced_bos_token_id == 9


def test_inputs_without_a_length_are_refused(tmp_path):
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset):
        def __iter__(self):
            yield from DATA

    with pytest.raises(balora.BALoraError, match="have no length"):
        run(tmp_path, rows=Stream()).train()
