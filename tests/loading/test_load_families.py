"""BA-LoRA on every model family: both loss paths agree, the teacher is the pre-trained model, a saved model loads again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import balora
from balora.loading.trained import load_untrained
from balora.methods.layers.weight_views import weight_matrices
from bench import adapted, backward, logits, rows_for, step_of
from families import FAMILIES, REGRESSION
from tiny import pad_rows
from trained_runs import batch as select_rows
from trained_runs import logits as logits_of
from trained_runs import trained_run

ALL = {**FAMILIES, **{f"{name}, regression": make for name, make in REGRESSION.items()}}
GENERATES = [name for name in FAMILIES if name not in REGRESSION]
STACKED = ["Mixtral", "Qwen1.5/2-MoE", "Qwen3-MoE", "DeepSeek-V2", "DeepSeek-V3"]
OFTEN = ("Gemma 2", "Mixtral", "DeepSeek-V3", "DeBERTa-v3", "T5")
"""Families saved and loaded by default. The others are slow tests; test_trained.py has models of the same kinds."""


def moved(make, method: str = "balora", steps: int = 3):
    """Return a model after some large steps, its train step and a batch."""
    model = adapted(make, method)
    step, batch = step_of(model), pad_rows(rows_for(model)[:4])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        backward(step, batch)
        optimizer.step()
    return model, step, batch


@pytest.mark.parametrize("family", ALL)
def test_the_teacher_is_the_pre_trained_model_after_steps(family):
    model, step, batch = moved(ALL[family])
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = inputs["input_ids"]
    expected = logits(ALL[family](), inputs)
    size = expected.abs().max()
    student = logits(model, inputs)
    assert (student - expected).abs().max() > 1e-2 * size, "the student has moved"
    with step.teacher.active():
        assert (logits(model, inputs) - expected).abs().max() <= 3e-5 * size, "W is W_res + s·BA but for rounding"
    assert torch.equal(logits(model, inputs), student), "and is back"


@pytest.mark.parametrize("family", STACKED)
def test_the_teacher_has_the_pre_trained_experts(family):
    model, step, _ = moved(FAMILIES[family], "pissa")
    weights = dict(FAMILIES[family]().named_parameters())
    stacked = [m for m in weight_matrices(model) if m.expert is not None]
    assert {m.expert for m in stacked} == {0, 1, 2, 3}

    def furthest() -> float:
        return max(
            float((m.weight_OI + m.scaling * m.factor_b_OR @ m.factor_a_RI - weight[m.expert]).abs().max())
            for m in stacked
            for weight in [weights[m.name.replace(".base_layer", "") + "." + m.layer.parameter_name]]
        )

    assert furthest() > 1e-3, "the experts have moved"
    with step.teacher.active():
        assert furthest() < 1e-5


@pytest.mark.parametrize("family", GENERATES)
def test_the_fused_loss_equals_the_reference_loss(family):
    model, step, batch = moved(FAMILIES[family])
    model.eval()
    fused, found = backward(step, batch)
    found = {name: gradient.clone() for name, gradient in found.items()}
    assert step._fused, "the fused path was really taken"
    plain, expected = backward(step_of(model, loss_path="plain", teacher=step.teacher), batch)
    for part in ("loss", "task", "consistency", "diversity", "spectral"):
        value, reference = (float(getattr(parts, part).detach()) for parts in (fused, plain))
        assert value == pytest.approx(reference, rel=1e-5, abs=1e-6), part
        assert reference != 0, part
    size = torch.stack([g.norm() for g in expected.values()]).norm()
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert (found[name] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6 * size, name


@pytest.mark.parametrize("family", [f if f in OFTEN else pytest.param(f, marks=pytest.mark.slow) for f in ALL])
def test_a_saved_model_loads_bit_for_bit(family, tmp_path: Path):
    task = "regression" if family.endswith("regression") else "classification"
    if family in GENERATES:
        task = "seq2seq" if family in ("T5", "BART") else "generation"
    trained = trained_run(tmp_path / "run", ALL[family](), task)
    loaded = balora.load(trained.folder)
    inputs = select_rows(loaded)
    assert torch.equal(logits_of(loaded, inputs), logits_of(trained.model, inputs))
    assert not torch.equal(logits_of(loaded, inputs), logits_of(load_untrained(trained.folder), inputs))
