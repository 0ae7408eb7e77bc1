from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from balora import BALoraError, RegularizationConfig
from balora.losses import HiddenStates, LinearHead, Logits, LossParts
from balora.objective import BATCH_STATISTICS, Objective, all_finite

CONSTANT = {"consistency_schedule": "constant", "focus_schedule": "constant"}


def classifier(num_labels: int = 4, **settings) -> Objective:
    return Objective(RegularizationConfig.for_classification(**settings), "classification", num_labels=num_labels)


def off_except(**weights) -> RegularizationConfig:
    return RegularizationConfig(**{"consistency": 0.0, "diversity": 0.0, "spectral": 0.0, **CONSTANT, **weights})


def draw(*shape: int, seed: int = 0, grad: bool = True) -> torch.Tensor:
    values = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    return values.requires_grad_(grad)


# -- notices (method.md, departures 3 and 4) ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_labels", [2, 3, 5])
def test_a_constant_spectral_term_is_switched_off_with_a_notice(num_labels):
    objective = classifier(num_labels, spectral_rank=5)
    (notice,) = objective.notices
    assert "spectral term is constant" in notice
    assert f"{num_labels} outputs and spectral_rank 5" in notice
    assert f"Choose spectral_rank below {num_labels}, or spectral_target: features" in notice
    assert objective.weights(0.5)["spectral"] == 0.0
    # Its gradient would have been 0.
    logits = draw(8, num_labels)
    from balora.regularizers import spectral_ratio

    spectral_ratio(logits, 5, norm="nuclear").backward()
    assert logits.grad.abs().max() <= 1e-6


@pytest.mark.parametrize("change", [{"spectral_rank": 2}, {"spectral_target": "features"}, {"spectral": 0.0}])
def test_following_the_notice_removes_it(change):
    objective = classifier(3, **change)
    assert objective.notices == []
    assert objective.weights(0.5)["spectral"] == change.get("spectral", 0.03)


def test_regression_keeps_consistency_and_names_the_terms_it_drops():
    objective = Objective(RegularizationConfig.for_classification(), "regression", num_labels=1)
    assert len(objective.notices) == 2
    assert any("diversity term is switched off" in notice for notice in objective.notices)
    (spectral,) = [notice for notice in objective.notices if "spectral term is constant" in notice]
    assert "with 1 output and" in spectral and spectral.endswith("switched off. Choose spectral_target: features.")
    assert objective.weights(0.3) == {"consistency": 0.15, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}


def test_regression_on_features_keeps_all_three():
    config = RegularizationConfig.for_classification(diversity_target="features", spectral_target="features")
    objective = Objective(config, "regression", num_labels=1)
    assert objective.notices == []
    assert objective.weights(0.3)["diversity"] == 0.03


def test_the_generation_spectrum_is_not_switched_off():
    assert Objective(RegularizationConfig.for_generation(spectral_rank=10_000), "generation").notices == []


def test_refuses_unknown_and_unusable_settings():
    with pytest.raises(BALoraError, match="loss_path must be fused or plain, not 'fast'"):
        Objective(RegularizationConfig(), "generation", loss_path="fast")
    with pytest.raises(BALoraError, match="task must be one of generation"):
        Objective(RegularizationConfig(), "tagging")
    with pytest.raises(BALoraError, match=r"regularization\.variance is for classification"):
        Objective(RegularizationConfig(variance=0.1), "generation")
    with pytest.raises(BALoraError) as error:
        Objective(RegularizationConfig(teacher_head="probe", spectral_target="features"), "seq2seq")
    assert "regularization.teacher_head: probe is for classification" in str(error.value)
    assert "regularization.spectral_target: features is for classification" in str(error.value)


# -- weights -----------------------------------------------------------------------------------------------------------


def test_each_weight_follows_its_schedule():
    config = RegularizationConfig(consistency=1.0, diversity=2.0, spectral=4.0)
    objective = Objective(config, "generation")
    at = objective.weights
    assert at(0.0) == {"consistency": 1.0, "diversity": 0.0, "spectral": 0.0, "variance": 0.0}
    assert at(1.0) == pytest.approx({"consistency": 0.1, "diversity": 2.0, "spectral": 4.0, "variance": 0.0})
    assert at(0.225)["diversity"] == pytest.approx(1.0)
    assert at(0.225)["spectral"] == pytest.approx(2.0)
    assert at(0.5)["consistency"] == pytest.approx(0.55)


def test_the_focus_settings_reach_the_schedule():
    config = off_except(diversity=1.0, focus_schedule="two_phase", focus_warmup=0.5, focus_ramp=0.2)
    objective = Objective(config, "generation")
    assert [objective.weights(t)["diversity"] for t in (0.49, 0.6, 0.7)] == pytest.approx([0.0, 0.5, 1.0])


def test_the_variance_hinge_follows_the_focus_schedule():
    config = off_except(variance=1.0, focus_schedule="linear_warmup", focus_warmup=0.5)
    objective = Objective(config, "classification", num_labels=3)
    assert objective.weights(0.25)["variance"] == pytest.approx(0.5)


def test_needed_inputs_follow_the_weights():
    assert not Objective(off_except(diversity=1.0), "generation").needs_teacher
    assert Objective(off_except(consistency=1.0), "generation").needs_teacher
    features = {"diversity_target": "features", "spectral_target": "features"}
    assert not classifier(4, **features, diversity=0.0, spectral=0.0).needs_features
    assert classifier(4, **features, diversity=0.0).needs_features
    assert classifier(4, **features, spectral=0.0).needs_features
    assert classifier(4, diversity_target="features", diversity=0.0, variance=0.1).needs_features
    assert not classifier(4).needs_features
    assert not Objective(RegularizationConfig(), "generation").needs_features


# -- classification ----------------------------------------------------------------------------------------------------


def test_the_parts_of_a_classification_batch_by_hand():
    logits, teacher, labels = draw(6, 4), draw(6, 4, seed=1), torch.tensor([0, 1, 2, 3, 0, 1])
    objective = classifier(4, spectral_rank=2, consistency=0.4, diversity=0.3, spectral=0.2, variance=0.1)
    parts = objective.classification(logits, labels, teacher, None, objective.weights(0.5))
    z, p = logits.detach().double(), teacher.detach().double()
    task = -z.log_softmax(-1)[range(6), labels].mean()
    q, log_q = (p / 2).softmax(-1), (p / 2).log_softmax(-1)
    kl = 4 * (q * (log_q - (z / 2).log_softmax(-1))).sum(-1).mean()
    cov = torch.cov(z.T)
    spread = (cov.square().sum() - cov.diagonal().square().sum()) / 4
    values = torch.linalg.svdvals(z)
    hinge = (1 - (z.var(0) + 1e-4).sqrt()).clamp_min(0).mean()
    assert float(parts.task) == pytest.approx(float(task), rel=1e-5)
    assert float(parts.consistency) == pytest.approx(float(kl), rel=1e-5)
    assert float(parts.diversity) == pytest.approx(float(spread), rel=1e-5)
    assert float(parts.spectral) == pytest.approx(-float(values[:2].sum() / values.sum()), rel=1e-5)
    assert float(parts.variance) == pytest.approx(float(hinge), rel=1e-5)
    total = task + 0.4 * kl + 0.3 * spread - 0.2 * values[:2].sum() / values.sum() + 0.1 * hinge
    assert float(parts.loss) == pytest.approx(float(total), rel=1e-5)
    assert parts.loss.requires_grad and not parts.task.requires_grad


def test_a_term_of_weight_zero_is_not_computed():
    objective = Objective(off_except(), "classification", num_labels=3)
    parts = objective.classification(draw(4, 3), torch.zeros(4).long(), None, None, objective.weights(0.0))
    assert (parts.consistency, parts.diversity, parts.spectral, parts.variance) == (None,) * 4


def test_features_take_the_place_of_the_logits_where_asked():
    config = off_except(
        diversity=1.0, spectral=1.0, diversity_target="features", spectral_target="features", spectral_rank=2
    )
    objective = Objective(config, "classification", num_labels=3)
    logits, features = draw(8, 3), draw(8, 5, seed=2)
    objective.classification(logits, torch.zeros(8).long(), None, features, objective.weights(0.0)).loss.backward()
    assert features.grad.norm() > 0.1
    own = torch.autograd.grad(F.cross_entropy(logits, torch.zeros(8).long()), logits)[0]
    torch.testing.assert_close(logits.grad, own)


def test_micro_batches_add_up_for_terms_that_are_sums():
    config = off_except(consistency=0.5)
    objective = Objective(config, "classification", num_labels=3)
    weights = objective.weights(0.0)
    logits, teacher, labels = draw(8, 3), draw(8, 3, seed=1), torch.arange(8) % 3
    whole = objective.classification(logits, labels, teacher, None, weights).loss
    parts = [
        objective.classification(
            logits[rows], labels[rows], teacher[rows], None, weights, num_items=torch.tensor(8), share=0.5
        )
        for rows in (slice(0, 5), slice(5, 8))
    ]
    assert float(sum(p.loss for p in parts)) == pytest.approx(float(whole), rel=1e-6)
    (expected,) = torch.autograd.grad(whole, logits)
    (found,) = torch.autograd.grad(sum(p.loss for p in parts), logits)
    torch.testing.assert_close(found, expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("part", BATCH_STATISTICS["classification"])
def test_batch_statistics_are_means_over_micro_batches(part):
    config = off_except(**{part: 2.0}, spectral_rank=1)
    objective = Objective(config, "classification", num_labels=3)
    weights = objective.weights(0.0)
    rows = [draw(n, 3, seed=n) for n in (5, 3)]
    labels = [torch.zeros(n).long() for n in (5, 3)]
    whole = [objective.classification(z, y, None, None, weights) for z, y in zip(rows, labels, strict=True)]
    micro = [
        objective.classification(z, y, None, None, weights, num_items=8, share=0.5)
        for z, y in zip(rows, labels, strict=True)
    ]
    raw = [getattr(p, part) for p in whole]
    assert [float(getattr(p, part)) for p in micro] == pytest.approx([float(r) for r in raw]), (
        "the parts are unweighted"
    )
    task = sum(float(p.task) for p in micro)
    assert float(sum(p.loss for p in micro)) == pytest.approx(task + 2.0 * float(sum(raw)) / 2, rel=1e-5)


def test_one_row_gives_finite_values():
    objective = classifier(4, spectral_rank=2, variance=0.1)
    logits = draw(1, 4)
    parts = objective.classification(logits, torch.tensor([2]), draw(1, 4, seed=1), None, objective.weights(0.0))
    parts.loss.backward()
    assert all_finite(parts) is None
    assert logits.grad.isfinite().all()


def test_regression_is_a_squared_error_to_the_labels_and_to_the_teacher():
    objective = Objective(off_except(consistency=0.5), "regression", num_labels=1)
    scores, teacher, labels = draw(5, 1), draw(5, 1, seed=1), draw(5, seed=2, grad=False)
    parts = objective.classification(scores, labels, teacher, None, objective.weights(0.0))
    task = (scores.squeeze(-1) - labels).square().mean()
    near = (scores - teacher).square().mean()
    assert float(parts.task) == pytest.approx(float(task), rel=1e-6)
    assert float(parts.consistency) == pytest.approx(float(near), rel=1e-6)
    assert float(parts.loss) == pytest.approx(float(task + 0.5 * near), rel=1e-6)


def test_labels_of_shape_n_by_1_are_not_broadcast():
    objective = Objective(off_except(), "regression", num_labels=1)
    scores, labels = draw(5, 1), draw(5, seed=2, grad=False)
    flat = objective.classification(scores, labels, None, None, objective.weights(0.0)).task
    column = objective.classification(scores, labels[:, None], None, None, objective.weights(0.0)).task
    assert float(flat) == float(column)


@pytest.mark.parametrize("labels", [torch.zeros(4, 3), torch.zeros(4), torch.zeros(3).long()])
def test_labels_other_than_class_numbers_are_refused(labels):
    objective = classifier(3, spectral_rank=2)
    with pytest.raises(BALoraError, match="takes one class number per row"):
        objective.classification(draw(4, 3), labels, draw(4, 3), None, objective.weights(0.0))


def test_half_precision_logits_are_widened():
    objective = Objective(off_except(), "classification", num_labels=3)
    logits = draw(4, 3).detach().bfloat16()
    parts = objective.classification(logits, torch.zeros(4).long(), None, None, objective.weights(0.0))
    assert parts.loss.dtype == torch.float32


# -- generation --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_only_the_spectral_term_is_multiplied_by_share(path):
    config = RegularizationConfig(consistency=0.5, diversity=0.3, spectral=0.2, top_k=3, spectral_rank=2, **CONSTANT)
    objective = Objective(config, "generation", loss_path=path)
    weights = objective.weights(0.0)
    hidden, teacher, head = draw(7, 6), draw(7, 6, seed=1, grad=False), draw(11, 6, seed=2, grad=False)
    labels = torch.arange(7)

    def parts(share: float) -> LossParts:
        if path == "plain":
            outputs = Logits(hidden @ head.T), labels, Logits(teacher @ head.T)
        else:
            outputs = HiddenStates(hidden, LinearHead(head)), labels, HiddenStates(teacher)
        return objective.language_modeling(*outputs, weights, num_items=10, share=share)

    full, quarter = parts(1.0), parts(0.25)
    for name in ("task", "consistency", "diversity", "spectral"):
        assert float(getattr(full, name)) == pytest.approx(float(getattr(quarter, name)), rel=1e-6), name
    tokens = full.task + 0.5 * full.consistency + 0.3 * full.diversity
    assert float(full.loss) == pytest.approx(float(tokens + 0.2 * full.spectral), rel=1e-5)
    assert float(quarter.loss) == pytest.approx(float(tokens + 0.05 * full.spectral), rel=1e-5)
    mean = F.cross_entropy(hidden @ head.T, labels)
    assert float(full.task) == pytest.approx(float(mean) * 7 / 10, rel=1e-5)


def test_the_old_forms_of_generation_work_and_warn():
    config = off_except(consistency=0.5, diversity=0.3, spectral=0.2, top_k=3, spectral_rank=2)
    objective = Objective(config, "generation")
    weights = objective.weights(0.0)
    hidden, teacher, head = draw(7, 6), draw(7, 6, seed=1, grad=False), draw(11, 6, seed=2, grad=False)
    mask, options = torch.arange(7) < 4, {"num_items": 10, "share": 0.5}
    student = HiddenStates(hidden, LinearHead(head))
    expected = objective.language_modeling(
        student, torch.arange(7), HiddenStates(teacher), weights, keep_prob=0.5, consistency_mask_M=mask, **options
    )
    options |= {"keep": 0.5, "consistency_mask_M": mask}
    with pytest.warns(DeprecationWarning, match="language_modeling"):
        fused = objective.generation(hidden, torch.arange(7), teacher, weights, head_VD=head, **options)
    with pytest.warns(DeprecationWarning, match="language_modeling"):
        plain = objective.generation_from_logits(hidden @ head.T, torch.arange(7), teacher @ head.T, weights, **options)
    for parts in (fused, plain):
        for name in ("loss", "task", "consistency", "diversity", "spectral"):
            torch.testing.assert_close(getattr(parts, name), getattr(expected, name))


def test_the_old_keyword_of_classification_works_and_warns():
    objective = Objective(off_except(consistency=0.5), "classification", num_labels=3)
    arguments = (draw(4, 3), torch.zeros(4).long(), draw(2, 3, seed=1), None, objective.weights(0.0))
    rows = torch.tensor([0, 2])
    with pytest.warns(DeprecationWarning, match="keep is now keep_prob"):
        old = objective.classification(*arguments, keep=0.5, consistency_rows=rows)
    assert torch.equal(old.loss, objective.classification(*arguments, keep_prob=0.5, consistency_rows=rows).loss)


# -- statistics of all processes (method.md, departure 7); in two processes: tests/losses/test_distributed_statistics.py


@pytest.mark.parametrize("target", ["logits", "features"])
def test_in_one_process_global_statistics_equal_local_ones_bit_for_bit(target):
    found = []
    for statistics in ("local", "global"):
        objective = classifier(
            4,
            spectral_rank=2,
            variance=0.1,
            spectral_target=target,
            diversity_target=target,
            batch_statistics=statistics,
        )
        logits, features = draw(6, 4), draw(6, 5, seed=2)
        weights = objective.weights(0.5)
        parts = objective.classification(logits, torch.arange(6) % 4, draw(6, 4, seed=1), features, weights)
        parts.loss.backward()
        found.append([parts.loss, parts.diversity, parts.variance, parts.spectral, logits.grad, features.grad])
    for local, other in zip(*found, strict=True):
        assert local is other is None or torch.equal(local, other)


@pytest.mark.parametrize("path", ["fused", "plain"])
def test_in_one_process_global_statistics_equal_local_ones_in_generation(path):
    found = []
    for statistics in ("local", "global"):
        config = off_except(spectral=0.5, spectral_rank=2, batch_statistics=statistics)
        objective = Objective(config, "generation", loss_path=path)
        hidden, head, labels = draw(7, 6), draw(11, 6, seed=2, grad=False), torch.arange(7)
        weights = objective.weights(0.0)
        student = Logits(hidden @ head.T) if path == "plain" else HiddenStates(hidden, LinearHead(head))
        parts = objective.language_modeling(student, labels, None, weights)
        parts.loss.backward()
        found.append([parts.loss, parts.spectral, hidden.grad])
    for local, other in zip(*found, strict=True):
        assert torch.equal(local, other)


# -- values that are not finite ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["task", "consistency", "diversity", "spectral", "variance", "loss"])
def test_the_faulty_term_is_named_before_the_sum(part, bad):
    good = {name: torch.tensor(1.0) for name in ("loss", "task", "consistency", "diversity", "spectral", "variance")}
    assert all_finite(LossParts(**good)) is None
    assert all_finite(LossParts(**{**good, part: torch.tensor(bad), "loss": torch.tensor(bad)})) == part


def test_terms_that_were_not_computed_are_not_checked():
    assert all_finite(LossParts(loss=torch.tensor(1.0), task=torch.tensor(1.0))) is None
