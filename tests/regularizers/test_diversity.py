from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Categorical

from balora.errors import BALoraError
from balora.regularizers import covariance, topk_negative_entropy, variance_hinge

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")

seeds = st.integers(0, 10_000)


def matrix(rows: int, columns: int, seed: int = 0, scale: float = 2.0) -> torch.Tensor:
    return scale * torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class TestCovariance:
    @given(st.integers(2, 9), st.integers(1, 7), seeds)
    def test_sums_the_squared_off_diagonal(self, rows, columns, seed):
        logits = matrix(rows, columns, seed)
        entries = torch.cov(logits.T).reshape(columns, columns)
        expected = sum(float(entries[i, j]) ** 2 for i in range(columns) for j in range(columns) if i != j) / columns
        assert float(covariance(logits)) == pytest.approx(expected, rel=1e-9, abs=1e-15)

    def test_two_mirrored_classes_have_the_variance_squared(self):
        a = matrix(12, 1)
        # method.md, departure 15: the term alone is smallest when everything collapses.
        assert float(covariance(torch.cat([a, -a], dim=1))) == pytest.approx(float(a.var()) ** 2, rel=1e-12)

    @given(seeds, st.floats(-9.0, 9.0), st.floats(0.1, 4.0))
    def test_ignores_a_shift_per_class_and_scales_with_the_fourth_power(self, seed, shift, factor):
        logits = matrix(6, 4, seed)
        value = float(covariance(logits))
        assert float(covariance(logits + shift * torch.arange(4.0))) == pytest.approx(value, rel=1e-7)
        assert float(covariance(factor * logits)) == pytest.approx(factor**4 * value, rel=1e-9)
        assert float(covariance(logits[torch.randperm(6)][:, torch.randperm(4)])) == pytest.approx(value, rel=1e-9)

    def test_gradient(self):
        assert torch.autograd.gradcheck(covariance, matrix(5, 4).requires_grad_())

    @pytest.mark.parametrize("shape", [(1, 3), (0, 3), (5, 1), (1, 1), (4, 0)])
    def test_too_few_rows_or_classes_give_zero_on_the_graph(self, shape):
        logits = torch.ones(shape, requires_grad=True)
        value = covariance(logits)
        value.backward()
        assert float(value) == 0.0
        assert torch.equal(logits.grad, torch.zeros(shape))

    def test_is_accurate_with_a_large_mean(self):
        logits = (matrix(64, 9) + 100).float()  # a large mean is what hurts
        gold = covariance(logits.double())
        assert float((covariance(logits) - gold).abs()) <= 1e-5 * float(gold)
        assert covariance(logits.bfloat16()).dtype == torch.float32

    def test_refuses(self):
        with pytest.raises(BALoraError, match=r"sequences × classes, and its shape is \(2, 3, 4\)"):
            covariance(torch.zeros(2, 3, 4))
        with pytest.raises(BALoraError, match="floating point"):
            covariance(torch.zeros(2, 3, dtype=torch.int))


class TestVarianceHinge:
    def test_by_hand(self):
        features = torch.tensor([[0.5, 3.0], [-0.5, -3.0]], dtype=torch.float64)  # deviations √½ and √18
        assert float(variance_hinge(features, epsilon=0.0)) == pytest.approx((1 - math.sqrt(0.5)) / 2, rel=1e-12)

    @given(st.integers(2, 9), st.integers(1, 6), seeds, st.floats(0.01, 5.0))
    def test_lies_between_zero_and_one_and_falls_as_the_spread_grows(self, rows, columns, seed, scale):
        features = matrix(rows, columns, seed, scale)
        value = float(variance_hinge(features))
        assert 0.0 <= value <= 1.0
        assert float(variance_hinge(2 * features)) <= value + 1e-12
        assert float(variance_hinge(features + 7)) == pytest.approx(value, abs=1e-7)

    def test_gradient_also_with_equal_rows(self):
        assert torch.autograd.gradcheck(variance_hinge, matrix(5, 4, scale=0.3).requires_grad_())
        collapsed = torch.ones(4, 3, requires_grad=True)
        value = variance_hinge(collapsed)
        value.backward()
        assert float(value) == pytest.approx(0.99, abs=1e-6)
        assert torch.isfinite(collapsed.grad).all()

    @pytest.mark.parametrize("shape", [(1, 3), (0, 3), (4, 0)])
    def test_too_few_rows_or_features_give_zero_on_the_graph(self, shape):
        features = torch.ones(shape, requires_grad=True)
        value = variance_hinge(features)
        value.backward()
        assert float(value) == 0.0 and not features.grad.any()


class TestTopKNegativeEntropy:
    @given(st.integers(1, 6), st.integers(2, 30), st.integers(2, 30), seeds)
    def test_equals_minus_the_entropy_of_the_k_likeliest(self, rows, vocabulary, top_k, seed):
        logits = matrix(rows, vocabulary, seed)
        expected = (
            -sum(float(Categorical(logits=row.sort(descending=True)[0][:top_k]).entropy()) for row in logits) / rows
        )
        value = float(topk_negative_entropy(logits, top_k))
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert -math.log(min(top_k, vocabulary)) - 1e-9 <= value <= 0.0

    @given(seeds, st.floats(-50.0, 50.0))
    def test_ignores_a_shift_and_the_order_of_the_vocabulary(self, seed, shift):
        logits = matrix(4, 11, seed)
        value = float(topk_negative_entropy(logits, 5))
        assert float(topk_negative_entropy(logits[:, torch.randperm(11)] + shift, 5)) == pytest.approx(value, abs=1e-9)

    def test_only_the_k_likeliest_get_a_gradient(self):
        logits = matrix(3, 12).requires_grad_()
        topk_negative_entropy(logits, 4).backward()
        chosen = torch.zeros(3, 12, dtype=torch.bool).scatter_(1, logits.topk(4).indices, True)
        assert torch.equal(logits.grad != 0, chosen)
        torch.testing.assert_close(logits.grad.sum(dim=1), torch.zeros(3, dtype=torch.float64))

    def test_a_gradient_step_spreads_the_candidates(self):
        logits = torch.tensor([[4.0, 1.0, 0.0, -9.0]], requires_grad=True)
        topk_negative_entropy(logits, 3).backward()
        assert float(logits.grad[0, 0]) > 0 > float(logits.grad[0, 2])

    @pytest.mark.parametrize("top_k", [2, 3, 7, 99])
    def test_gradient(self, top_k):
        assert torch.autograd.gradcheck(lambda z: topk_negative_entropy(z, top_k), matrix(3, 7).requires_grad_())

    def test_k_is_clipped_to_the_vocabulary(self):
        logits = matrix(3, 7)
        assert float(topk_negative_entropy(logits, 99)) == float(topk_negative_entropy(logits, 7))

    def test_ruled_out_candidates_have_no_effect(self):
        logits = torch.tensor([[1.0, 1.0, -torch.inf, -torch.inf]], requires_grad=True)
        value = topk_negative_entropy(logits, 4)
        value.backward()
        assert float(value) == pytest.approx(-math.log(2), rel=1e-6)
        assert torch.equal(logits.grad, torch.zeros(1, 4))

    def test_no_tokens_give_zero_on_the_graph(self):
        logits = torch.zeros(0, 9, requires_grad=True)
        value = topk_negative_entropy(logits)
        value.backward()
        assert float(value) == 0.0 and logits.grad.shape == (0, 9)

    def test_a_vocabulary_of_one_has_no_entropy(self):
        assert float(topk_negative_entropy(torch.ones(3, 1))) == 0.0

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_works_in_float32_or_wider(self, dtype):
        logits = matrix(5, 40).to(dtype)
        value = topk_negative_entropy(logits, 20)
        assert value.dtype == torch.float32
        assert float(value) == pytest.approx(float(topk_negative_entropy(logits.double(), 20)), rel=1e-6)

    def test_refuses(self):
        with pytest.raises(BALoraError, match=r"top_k must be at least 2.*it is 1"):
            topk_negative_entropy(torch.zeros(2, 5), 1)
        with pytest.raises(BALoraError, match="tokens × vocabulary"):
            topk_negative_entropy(torch.zeros(5))
