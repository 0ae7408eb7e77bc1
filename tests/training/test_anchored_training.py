"""Training with anchors: the term's value and gradient, its invariances, the budget, and resuming."""

from __future__ import annotations

import json

import pytest
import torch

import balora
from balora import Anchors, BALoraError, RegularizationConfig
from balora.regularizers import consistency
from balora.training.anchors.anchor_term import STATE
from small_runs import OFF, Do, Gradients, flat, history, trainer
from tiny import labelled_rows, tiny_bart, tiny_bert, tiny_llama, tiny_tokenizer

ROWS = tuple({"input_ids": [1, *(3 + (7 * row + 5 * at) % 90 for at in range(5 + row % 3))]} for row in range(12))


class Tokenizer:
    bos_token_id, eos_token_id, pad_token_id, chat_template = 1, 2, 0, None

    def save_pretrained(self, folder, **_):
        return ()

    def __call__(self, text, **_):
        return {"input_ids": [1, *(3 + ord(letter) % 90 for letter in text)]}


def anchors(**settings) -> Anchors:
    return Anchors(rows=ROWS, **{"weight": 3.0, "share": 1.0, **settings})


def adapted(**settings):
    return balora.adapt(tiny_llama(**settings), "pissa", rank=4)


def moved(model):
    """Move the adapter away from its start, so that the term is not 0."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def plain_term(run, rows) -> torch.Tensor:
    """The term from full logits and the formula, one row at a time."""
    model, total, count = run.model, 0.0, 0
    for row in rows:
        ids = torch.tensor([run.anchor_term.rows.rows[row]["input_ids"]])
        with run.teacher.active():
            held = model(ids).logits[0, :-1]
        total = total + consistency(model(ids).logits[0, :-1], held, 1.0) * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    return total / count


@pytest.mark.parametrize("path", ["fused", "plain"])
@pytest.mark.parametrize("cache", ["auto", "off"])
def test_term_and_gradient_are_those_of_the_formula(tmp_path, path, cache):
    run = trainer(
        adapted(), tmp_path, config=OFF, anchors=anchors(teacher_cache=cache), max_steps=1, learning_rate=0.0,
        loss_path=path,
    )  # fmt: skip
    run.train()
    moved(run.model)
    run.model.eval()
    rows = run.anchor_term.rows.at(0, run.anchor_term.per_step)
    expected = plain_term(run, rows)
    gradient = torch.autograd.grad(expected, [p for p in run.model.parameters() if p.requires_grad])
    run.model.zero_grad()
    run.anchor_term._micro = (-1, 0)
    term, weight = run.anchor_term.loss(run.model, 0, 1)
    term.backward()
    assert weight == 3.0
    torch.testing.assert_close(term.detach(), expected.detach(), rtol=1e-4, atol=1e-6)
    found = [p.grad for p in run.model.parameters() if p.requires_grad]
    for one, other in zip(found, gradient, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)


def test_drift_is_measured_on_the_anchors_held_out(tmp_path):
    run = trainer(adapted(), tmp_path, config=OFF, anchors=anchors(), max_steps=2)
    metrics = run.train().metrics
    run.model.eval()
    assert metrics["anchor_drift"] == pytest.approx(
        float(plain_term(run, run.anchor_term.rows.held_out).detach()), rel=1e-4
    )


def test_a_model_that_has_not_changed_has_no_drift(tmp_path):
    run = trainer(adapted(), tmp_path, config=OFF, anchors=anchors(), max_steps=2, learning_rate=0.0)
    assert abs(run.train().metrics["anchor_drift"]) < 1e-6
    assert max(map(abs, history(run, "anchor"))) < 1e-6


def gradients(folder, *, accumulation: int, batch: int, **changes) -> list[dict[str, torch.Tensor]]:
    seen = Gradients()
    run = trainer(
        moved(adapted().double()) if changes.pop("move", False) else adapted().double(), folder, config=OFF,
        anchors=anchors(**changes), callbacks=[seen], max_steps=3, optim="sgd", learning_rate=0.3, max_grad_norm=0.0,
        per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation,
    )  # fmt: skip
    run.train()
    return seen.steps


def test_accumulation_gives_the_gradient_of_the_whole_batch(tmp_path):
    whole, parts = (
        gradients(tmp_path / "a", accumulation=1, batch=4),
        gradients(tmp_path / "b", accumulation=2, batch=2),
    )
    for one, other in zip(whole, parts, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-12)


def test_the_anchors_act_on_the_gradient(tmp_path):
    held, free = (
        gradients(tmp_path / "a", accumulation=1, batch=4),
        gradients(tmp_path / "b", accumulation=1, batch=4, weight=1e-9),
    )
    assert any(not torch.allclose(held[-1][name], free[-1][name]) for name in held[-1])


def test_anchors_lower_the_drift_and_are_logged(tmp_path):
    runs = {
        weight: trainer(adapted(), tmp_path / str(weight), config=OFF, anchors=anchors(weight=weight), max_steps=30)
        for weight in (1e-6, 30.0)
    }
    drifts = {weight: run.train().metrics["anchor_drift"] for weight, run in runs.items()}
    assert drifts[30.0] < 0.5 * drifts[1e-6]
    for name in ("task", "anchor", "anchor_weight", "anchor_weighted"):
        assert len(history(runs[30.0], name)) == 30
    entry = runs[30.0].state.log_history[5]
    assert entry["loss"] == pytest.approx(entry["task"] + entry["anchor_weighted"], rel=1e-3)


def test_a_budget_moves_the_weight(tmp_path):
    run = trainer(adapted(), tmp_path, config=OFF, anchors=anchors(weight=1e-3, budget=1e-3), max_steps=30)
    metrics = run.train().metrics
    weights = history(run, "anchor_weight")
    assert weights[0] == pytest.approx(1e-3) and weights[-1] > 4e-3
    assert metrics["anchor_budget"] == 1e-3 and metrics["anchor_final_weight"] >= weights[-1] * 0.99


@pytest.mark.parametrize("every", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path, every):
    def run(folder, **changes):
        return trainer(
            balora.adapt(tiny_llama(attention_dropout=0.1), "pissa", rank=4), folder, config=OFF,
            anchors=Anchors.generated(16, tokens=8, share=1.0, weight=2.0, budget=0.01, every=every),
            processing_class=Tokenizer(), max_steps=14, save_strategy="steps", save_steps=7, **changes,
        )  # fmt: skip

    whole = run(tmp_path / "a")
    whole.train()
    broken = run(tmp_path / "b")
    broken.add_callback(Do("on_step_end", 9, _stop))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    assert json.loads((tmp_path / "b" / "checkpoint-7" / STATE).read_text())["seen"] is not None
    again = run(tmp_path / "b")
    again.train(resume_from_checkpoint=str(tmp_path / "b" / "checkpoint-7"))
    assert torch.equal(flat(whole.model), flat(again.model))
    assert history(whole, "anchor_drift") == history(again, "anchor_drift")


def _stop():
    raise KeyboardInterrupt


def test_generated_anchors_are_kept_in_the_runs_folder(tmp_path):
    settings = {
        "config": OFF,
        "anchors": Anchors.generated(16, tokens=8),
        "processing_class": Tokenizer(),
        "max_steps": 1,
    }
    first = trainer(adapted(), tmp_path, **settings)
    first.train()
    stamp = (tmp_path / "anchors.safetensors").stat().st_mtime_ns
    second = trainer(adapted(), tmp_path, **settings)
    second.train()
    assert (tmp_path / "anchors.safetensors").stat().st_mtime_ns == stamp
    assert first.anchor_term.rows.rows == second.anchor_term.rows.rows
    assert first.anchor_term.rows.facts["source"] == "text that the pre-trained model wrote itself"
    other = trainer(adapted(), tmp_path, **{**settings, "anchors": Anchors.generated(16, tokens=9)})
    other.train()  # other settings: other rows
    assert other.anchor_term.rows.rows != first.anchor_term.rows.rows


def test_texts_are_cut_into_pieces(tmp_path):
    given = Anchors.from_text(["a long text about the world " * 3, "another one of them"], tokens=16, sequences=8)
    run = trainer(adapted(), tmp_path, config=OFF, anchors=given, processing_class=tiny_tokenizer(), max_steps=1)
    run.train()
    lengths = [len(row["input_ids"]) for row in run.anchor_term.rows.rows]
    assert len(lengths) > 2 and max(lengths) <= 16


def test_full_fine_tuning_and_a_trained_head(tmp_path):
    model = balora.adapt(tiny_llama(tie_word_embeddings=False), "full")
    run = trainer(model, tmp_path, config=OFF, anchors=anchors(), max_steps=3)
    metrics = run.train().metrics
    run.model.eval()
    assert metrics["anchor_drift"] == pytest.approx(
        float(plain_term(run, run.anchor_term.rows.held_out).detach()), rel=1e-3
    )


def test_together_with_the_papers_terms(tmp_path):
    paper = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.2)
    run = trainer(adapted(), tmp_path, config=paper, anchors=anchors(), max_steps=3)
    run.train()
    assert {"consistency", "anchor"} <= run.state.log_history[-3].keys() | run.state.log_history[0].keys()


def test_a_classifier_is_held_on_unlabelled_rows(tmp_path):
    rows = tuple({"input_ids": [5 + (3 * row + at) % 80 for at in range(6)]} for row in range(10))
    paper = RegularizationConfig.for_classification(teacher_head="probe")
    for weight in (1e-6, 50.0):
        run = trainer(
            balora.adapt(tiny_bert(), "pissa", rank=4), tmp_path / str(weight), config=paper, rows=labelled_rows(16),
            anchors=Anchors(rows=rows, weight=weight, share=1.0), max_steps=15,
        )  # fmt: skip
        drift = run.train().metrics["anchor_drift"]
        free = drift if weight < 1 else free  # noqa: F821
    assert drift < 0.7 * free


def test_an_encoder_decoder_is_held_on_pairs(tmp_path):
    rows = tuple({"input_ids": [5 + row, 6, 7], "labels": [8, 9 + row, 2]} for row in range(10))
    data = [{"input_ids": [3 + i, 4, 5], "labels": [6, 7 + i, 2]} for i in range(12)]
    run = trainer(
        balora.adapt(tiny_bart(), "pissa", rank=4), tmp_path, config=OFF, rows=data,
        anchors=Anchors(rows=rows, weight=5.0, share=1.0), max_steps=3,
    )  # fmt: skip
    metrics = run.train().metrics
    assert 0 < metrics["anchor_drift"] < 1


def test_what_cannot_be_done_is_said(tmp_path):
    with pytest.raises(BALoraError, match="need the tokenizer"):
        trainer(adapted(), tmp_path, config=OFF, anchors=Anchors.generated(16), max_steps=1).train()
    run = trainer(
        balora.adapt(tiny_bert(), "pissa", rank=4), tmp_path, rows=labelled_rows(8), config=OFF,
        anchors=Anchors.generated(16), processing_class=Tokenizer(), max_steps=1,
    )  # fmt: skip
    with pytest.raises(BALoraError, match="for models that write text, and the task is classification"):
        run.train()
