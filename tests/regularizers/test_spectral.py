from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from balora.errors import BALoraError
from balora.regularizers import spectral_is_constant, spectral_ratio

settings.register_profile("no_deadline", deadline=None)  # a busy machine must not fail a test
settings.load_profile("no_deadline")

NORMS = ("nuclear", "frobenius")
seeds = st.integers(0, 10_000)


def matrix(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def with_values(values: list[float], rows: int, columns: int) -> torch.Tensor:
    left = torch.linalg.qr(matrix(rows, rows, 1)).Q
    right = torch.linalg.qr(matrix(columns, columns, 2)).Q
    middle = torch.zeros(rows, columns, dtype=torch.float64)
    middle[range(len(values)), range(len(values))] = torch.tensor(values, dtype=torch.float64)
    return left @ middle @ right.T


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 9), seeds)
def test_equals_minus_the_ratio_of_the_largest_to_the_norm(rows, columns, rank, seed):
    logits = matrix(rows, columns, seed)
    values = np.linalg.svd(logits.numpy(), compute_uv=False)
    assert float(spectral_ratio(logits, rank, "nuclear")) == pytest.approx(
        -values[:rank].sum() / np.linalg.norm(logits.numpy(), "nuc"), rel=1e-9
    )
    assert float(spectral_ratio(logits, rank, "frobenius")) == pytest.approx(
        -values[:rank].sum() / np.linalg.norm(logits.numpy(), "fro"), rel=1e-9
    )


@given(st.integers(1, 8), st.integers(1, 8), st.integers(1, 9), seeds, st.floats(1e-3, 1e3))
def test_bounds_scale_and_rotation(rows, columns, rank, seed, factor):
    logits = matrix(rows, columns, seed)
    rotation = torch.linalg.qr(matrix(columns, columns, seed + 1)).Q
    for norm, lowest in (("nuclear", -1.0), ("frobenius", -math.sqrt(rank))):
        value = float(spectral_ratio(logits, rank, norm))
        assert lowest - 1e-9 <= value < 0.0
        assert float(spectral_ratio(-factor * logits, rank, norm)) == pytest.approx(value, rel=1e-9)
        assert float(spectral_ratio(logits @ rotation, rank, norm)) == pytest.approx(value, rel=1e-9)
        assert float(spectral_ratio(logits.T[torch.randperm(columns)], rank, norm)) == pytest.approx(value, rel=1e-9)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("rank", [1, 3, 9])
def test_gradient(norm, shape, rank):
    assert torch.autograd.gradcheck(lambda z: spectral_ratio(z, rank, norm), matrix(*shape).requires_grad_())


@pytest.mark.parametrize("norm", NORMS)
def test_upstream_gradient_is_applied(norm):
    once, tenth = matrix(5, 6).requires_grad_(), matrix(5, 6).requires_grad_()
    spectral_ratio(once, 2, norm).backward()
    (0.1 * spectral_ratio(tenth, 2, norm)).backward()
    torch.testing.assert_close(tenth.grad, 0.1 * once.grad)


@pytest.mark.parametrize("norm", NORMS)
def test_equal_values_on_one_side_of_rank_k_have_a_unique_gradient(norm):
    # σ = (2, 2, 1, 1): U_2 V_2ᵀ does not depend on which vectors of the pair are taken.
    logits = with_values([2.0, 2.0, 1.0, 1.0], 6, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: spectral_ratio(z, 2, norm), logits)
    spectral_ratio(logits, 2, norm).backward()
    # What moves all of the pair together is felt: growing the pair lowers the loss, growing the rest raises it.
    left, _, right = torch.linalg.svd(logits.detach(), full_matrices=False)
    slopes = torch.einsum("ni,nd,id->i", left, logits.grad, right)
    assert (slopes[:2] < 0).all() and (slopes[2:4] > 0).all()
    torch.testing.assert_close(slopes[0], slopes[1])


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("values", [[1.0, 1.0, 1.0], [3.0, 1.0, 1.0, 0.5], [5.0], [5.0, 2.0]])
def test_ties_and_rank_deficiency_are_safe(norm, values):
    logits = with_values(values, 6, 5).requires_grad_()
    spectral_ratio(logits, 2, norm).backward()
    assert torch.isfinite(logits.grad).all()
    assert float(logits.grad.abs().max()) < 2.0


@pytest.mark.parametrize("norm", NORMS)
def test_directions_of_singular_value_zero_get_no_gradient(norm):
    logits = with_values([4.0, 2.0], 7, 6).requires_grad_()
    spectral_ratio(logits, 5, norm).backward()
    left, _, right = torch.linalg.svd(logits.detach())
    outside = left[:, 2:].T @ logits.grad @ right[2:].T
    assert float(outside.abs().max()) < 1e-12


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", [(4, 3), (0, 3), (3, 0)])
def test_zero_and_empty_matrices_give_zero_on_the_graph(norm, shape):
    logits = torch.zeros(shape, requires_grad=True)
    value = spectral_ratio(logits, 2, norm)
    value.backward()
    assert float(value) == 0.0 and not logits.grad.any()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_input_that_is_not_finite_gives_nan_without_an_error(norm, bad):
    logits = matrix(4, 3)
    logits[1, 1] = bad
    logits.requires_grad_()
    value = spectral_ratio(logits, 2, norm)
    value.backward()
    assert torch.isnan(value) and torch.isnan(logits.grad).any()


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (1, 4), (4, 1), (2, 2)])
@pytest.mark.parametrize("rank", [1, 2, 3, 5])
@pytest.mark.parametrize("norm", NORMS)
def test_spectral_is_constant_agrees_with_the_gradient(shape, rank, norm):
    found = []
    moves = False
    for seed in range(4):
        logits = matrix(*shape, seed).requires_grad_()
        value = spectral_ratio(logits, rank, norm)
        value.backward()
        found.append(float(value))
        moves |= bool((logits.grad.abs() > 1e-12).any())
    constant = max(found) - min(found) < 1e-12
    assert spectral_is_constant(*shape, rank, norm) == constant == (not moves)


def test_the_papers_rank_is_constant_on_all_of_glue():
    assert all(spectral_is_constant(32, classes, rank=5) for classes in (1, 2, 3))  # method.md, departure 3
    assert not spectral_is_constant(32, 768, rank=5)
    logits = matrix(32, 3).requires_grad_()
    spectral_ratio(logits, 5).backward()
    assert torch.equal(logits.grad, torch.zeros(32, 3, dtype=torch.float64))  # exactly: Adam would blow up dust


def test_no_gradient_is_computed_without_grad_mode():
    logits = matrix(5, 4).requires_grad_()
    with torch.no_grad():
        value = spectral_ratio(logits, 2)
    assert value.grad_fn is None
    assert float(value) == pytest.approx(float(spectral_ratio(logits, 2)), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("norm", NORMS)
def test_close_to_the_gold_standard(dtype, norm):
    low = matrix(33, 130).to(dtype).requires_grad_()
    gold = low.detach().double().requires_grad_()
    value, truth = spectral_ratio(low, 4, norm), spectral_ratio(gold, 4, norm)
    value.backward()
    truth.backward()
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(float(truth), rel=1e-5)
    cosine = torch.cosine_similarity(low.grad.double().flatten(), gold.grad.flatten(), dim=0)
    assert float(cosine) > (0.9999 if dtype == torch.bfloat16 else 0.999999)


def test_a_second_derivative_is_refused():
    logits = matrix(4, 3).requires_grad_()
    with pytest.raises(BALoraError, match="first derivative only"):
        torch.autograd.grad(spectral_ratio(logits, 1), logits, create_graph=True)


def test_inside_a_compiled_function():
    compiled = torch.compile(lambda z: 3 * spectral_ratio(2 * z, 2), backend="eager")
    logits, plain = matrix(5, 4).requires_grad_(), matrix(5, 4).requires_grad_()
    compiled(logits).backward()
    (3 * spectral_ratio(2 * plain, 2)).backward()
    torch.testing.assert_close(logits.grad, plain.grad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: spectral_ratio(torch.zeros(3), 1), r"rows × columns, and its shape is \(3,\)"),
        (lambda: spectral_ratio(torch.zeros(3, 3), 0), "rank must be at least 1, and it is 0"),
        (lambda: spectral_ratio(torch.zeros(3, 3), 1, "frobenuis"), "Did you mean 'frobenius'"),
        (lambda: spectral_is_constant(3, 3, 0), "rank must be at least 1"),
        (lambda: spectral_ratio(torch.zeros(3, 3, dtype=torch.long), 1), "floating point"),
    ],
)
def test_refuses(call, message):
    with pytest.raises(BALoraError, match=message):
        call()
