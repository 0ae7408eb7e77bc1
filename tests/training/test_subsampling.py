"""The consistency term on some steps and sequences: the expected gradient is unchanged, and the teacher runs less often."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import balora
from balora import PretrainedTeacher, RegularizationConfig
from balora.objective import Objective
from balora.training.steps.classification_step import ClassificationStep
from balora.training.steps.generation_step import GenerationStep
from balora.training.steps.subsampling import SequenceMask, Subsampler, select_rows
from small_runs import ALL_TERMS, CONSTANT, flat, history, pissa, trainer
from tiny import labelled_rows, pad_rows, pair_rows, tiny_bart, tiny_bert, tiny_llama, token_rows

TERMS = {"consistency": 0.5, "diversity": 0.3, "spectral": 0.0, "variance": 0.0}


def test_one_step_in_n_is_drawn_anew_in_each_block():
    subsampler = Subsampler(RegularizationConfig(consistency_every=3), seed=5)
    strengths = [subsampler.step_factor(step) for step in range(300)]
    assert all(sum(strengths[at : at + 3]) == 3.0 and strengths[at : at + 3].count(0.0) == 2 for at in range(0, 300, 3))
    places = [strengths[at : at + 3].index(3.0) for at in range(0, 300, 3)]
    assert all(20 < places.count(place) < 50 for place in range(3))
    again = Subsampler(RegularizationConfig(consistency_every=3), seed=5)
    assert [again.step_factor(step) for step in reversed(range(300))] == strengths[::-1]
    other = Subsampler(RegularizationConfig(consistency_every=3), seed=6)
    assert [other.step_factor(step) for step in range(300)] != strengths


@pytest.mark.parametrize(("count", "fraction"), [(4, 0.5), (4, 0.3), (1, 0.25), (7, 0.9)])
def test_each_sequence_is_drawn_with_its_probability(count, fraction):
    config = RegularizationConfig(consistency_fraction=fraction)
    here, there = Subsampler(config, 1), Subsampler(config, 1, process=1)
    seen = torch.zeros(count)
    differ = 0
    for step in range(3000):
        rows, other = here.draw_sequences(step, 0, count), there.draw_sequences(step, 0, count)
        assert len(rows) == len(other) and len(rows) in (math.floor(fraction * count), math.ceil(fraction * count))
        assert rows.tolist() == sorted(set(rows.tolist()))
        differ += rows.tolist() != other.tolist()
        seen[rows] += 1
    deviation = math.sqrt(fraction * (1 - fraction) / 3000)
    assert ((seen / 3000 - fraction).abs() < 4 * deviation).all()
    assert differ > 0 or count == 1


def _generation(make, rows, task: str, path: str):
    model = pissa(make)
    step = GenerationStep(model, Objective(ALL_TERMS, task, loss_path=path), PretrainedTeacher(model))
    return model, step, pad_rows(rows)


def _classifier(labels: int):
    model = pissa(lambda: tiny_bert(num_labels=labels))
    task = "regression" if labels == 1 else "classification"
    step = ClassificationStep(model, Objective(ALL_TERMS, task, num_labels=labels), PretrainedTeacher(model))
    return model, step, pad_rows(labelled_rows(4, labels=labels))


MODELS = {
    "fused": lambda: _generation(tiny_llama, token_rows(4), "generation", "fused"),
    "plain": lambda: _generation(tiny_llama, token_rows(4), "generation", "plain"),
    "adapted head": lambda: _generation(lambda: tiny_llama(tie_word_embeddings=False), token_rows(4), "generation", "fused"),
    "seq2seq": lambda: _generation(tiny_bart, pair_rows(4), "seq2seq", "fused"),
    "classification": lambda: _classifier(3),
    "regression": lambda: _classifier(1),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("fraction", [0.5, 0.3, 0.1])
def test_the_expected_gradient_is_the_full_gradient(name, fraction):
    model, step, batch = MODELS[name]()
    labels = batch.pop("labels")
    with torch.no_grad():  # away from the initial values, where the term's gradient is 0
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))

    def gradient(mask: SequenceMask | None) -> tuple[torch.Tensor, torch.Tensor]:
        model.zero_grad()
        parts, _, _ = step.train(model, batch, labels, TERMS, num_items=torch.tensor(9), share=0.5, sequence_mask=mask)
        parts.loss.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]), parts.consistency

    full, value = gradient(None)
    low = math.floor(4 * fraction)
    chance = {low: 1 - (4 * fraction - low), low + 1: 4 * fraction - low}
    mean, mean_value, single = torch.zeros_like(full), torch.zeros(()), None
    for number, probability in chance.items():
        subsets = list(itertools.combinations(range(4), number)) if probability > 0 else []
        for subset in subsets:
            single, one = gradient(SequenceMask(torch.tensor(subset, dtype=torch.int64), fraction))
            mean += probability / len(subsets) * single
            mean_value += probability / len(subsets) * one
    assert (mean - full).norm() <= 1e-5 * full.norm()
    assert float(mean_value) == pytest.approx(float(value), rel=1e-4)
    assert (single - full).norm() > 1e-3 * full.norm()  # a single draw differs


def test_the_teacher_does_not_run_in_skipped_steps(tmp_path, asked):
    config = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.2, consistency_every=3, **CONSTANT)
    run = trainer(pissa(tiny_llama), tmp_path, config=config, max_steps=6, gradient_accumulation_steps=2)
    run.train()
    assert len(asked) == 1 + 2 * 2  # the check before the first step; both micro-batches in two of six steps
    assert history(run, "consistency_weight").count(1.5) == 2 and sum(history(run, "consistency_weight")) == 3.0
    assert len(history(run, "consistency")) == 2
    weighted = sum(h * 1.5 for h in history(run, "consistency"))
    assert sum(history(run, "consistency_weighted")) == pytest.approx(weighted, rel=1e-4)


def test_a_micro_batch_without_a_drawn_sequence_does_not_run_the_teacher_and_counts_as_0(tmp_path, asked):
    config = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.0, consistency_fraction=0.25, **CONSTANT)
    run = trainer(pissa(tiny_llama), tmp_path, config=config, max_steps=12, per_device_train_batch_size=1)
    run.train()
    values = history(run, "consistency")
    assert len(values) == 12 and 0 < len(asked) - 1 < 9
    assert sum(value != 0.0 for value in values) <= len(asked) - 1


def test_a_resumed_run_draws_the_same_as_the_uninterrupted_one(tmp_path):
    config = RegularizationConfig(
        consistency=0.5, diversity=0.3, spectral=0.2, consistency_every=2, consistency_fraction=0.4, **CONSTANT
    )
    settings = {
        "config": config,
        "save_strategy": "steps",
        "save_steps": 3,
        "max_steps": 8,
        "gradient_accumulation_steps": 2,
    }
    uninterrupted = trainer(pissa(tiny_llama), tmp_path, **settings)
    uninterrupted.train()
    resumed = trainer(pissa(tiny_llama), tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert torch.equal(flat(uninterrupted.model), flat(resumed.model))
    other = trainer(pissa(tiny_llama), tmp_path, **{**settings, "seed": 7, "data_seed": 42, "save_strategy": "no"})
    other.train()
    assert history(other, "consistency") != history(uninterrupted, "consistency")


def test_select_rows():
    batch = {"input_ids": torch.arange(6).view(3, 2), "scale": torch.tensor([1.0, 2.0]), "use_cache": False}
    few = select_rows(batch, torch.tensor([0, 2]), 3)
    assert few["input_ids"].tolist() == [[0, 1], [4, 5]] and len(few["scale"]) == 2 and few["use_cache"] is False


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"consistency_every": 0}, "consistency_every must be a whole number of at least 1, not 0"),
        ({"consistency_fraction": 0.0}, r"consistency_fraction must be above 0 and at most 1, not 0\.0"),
        ({"consistency_fraction": 1.5}, "consistency_fraction must be above 0 and at most 1"),
    ],
)
def test_wrong_settings_are_refused(change, sentence):
    with pytest.raises(balora.BALoraError, match=sentence):
        RegularizationConfig(**change)
