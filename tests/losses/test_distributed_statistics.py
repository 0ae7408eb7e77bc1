"""Batch statistics across processes equal those of one process with all rows, in value and gradient (method.md, departure 7)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import global_cases
from balora.errors import BALoraError
from balora.losses.distributed_statistics import global_covariance, global_spectral_ratio, global_variance_hinge
from balora.losses.spectral_gram import global_frobenius_ratio
from balora.regularizers import covariance, spectral_ratio, variance_hinge
from global_cases import normal
from processes import run_script


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[dict[str, list[torch.Tensor]]]:
    directory = tmp_path_factory.mktemp("global")
    run_script(Path(global_cases.__file__), str(directory))
    return [torch.load(directory / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", global_cases.cases())
def test_two_processes_give_what_one_process_with_all_rows_gives(name, found):
    case = global_cases.cases()[name]()
    value, *gradients = case.value_and_gradients(slice(None), alone=True)
    (first, *of_first), (second, *of_second) = (results[name] for results in found)
    mean = (first + second) / 2  # each process has the token terms of its own tokens only
    torch.testing.assert_close(mean, value, rtol=1e-10, atol=1e-10)
    if not name.startswith(("fused", "plain")):
        assert first == second
    for one, other, expected in zip(of_first, of_second, gradients, strict=True):
        torch.testing.assert_close((one + other) / 2, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["covariance of (9, 5, 3)", "spectral 1 of (6, 2, 11)", "fused, linear", "plain"])
def test_local_statistics_give_another_value(name, found):
    """Show that the comparison above can fail: from the rows of each process alone the value differs."""
    case = global_cases.cases()[name]()
    alone = [
        case.value_and_gradients(rows, alone=True)[0] for rows in (slice(case.first), slice(case.first, case.rows))
    ]
    assert abs(float(sum(alone)) / 2 - float(found[0][name][0] + found[1][name][0]) / 2) > 1e-3


def test_a_value_that_is_not_finite_in_one_process_gives_nan_in_all(found):
    for results in found:
        assert all(bool(value.isnan()) for value in results["broken"])


# -- the forms in one process ------------------------------------------------------------------------------------------

SHAPES = [(5, 7), (7, 5), (4, 4), (1, 6), (6, 1), (2, 3), (40, 3)]
PAIRS = {
    "covariance": (global_covariance, covariance),
    "variance": (global_variance_hinge, variance_hinge),
    "spectral 1": (lambda z: global_spectral_ratio(z, 1), lambda z: spectral_ratio(z, 1)),
    "spectral 3": (lambda z: global_spectral_ratio(z, 3), lambda z: spectral_ratio(z, 3)),
    "frobenius 2": (lambda z: global_frobenius_ratio(z, 2), lambda z: spectral_ratio(z, 2, "frobenius")),
    "frobenius 9": (lambda z: global_frobenius_ratio(z, 9), lambda z: spectral_ratio(z, 9, "frobenius")),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_statistics_from_sums_equal_the_plain_formulas(name, shape):
    by_sums, plain = PAIRS[name]
    rows = (0.5 * normal(*shape) + 0.3).requires_grad_()
    torch.testing.assert_close(by_sums(rows), plain(rows), rtol=1e-10, atol=1e-12)
    one, other = (torch.autograd.grad(3.0 * f(rows), rows)[0] for f in (by_sums, plain))
    torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", PAIRS)
def test_gradient(name):
    rows = (0.5 * normal(7, 4)).requires_grad_()
    assert torch.autograd.gradcheck(PAIRS[name][0], (rows,))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_rows_are_widened_and_get_a_gradient_in_their_dtype(name, dtype):
    rows = (0.5 * normal(7, 4)).to(dtype)
    exact = float(PAIRS[name][1](rows.double()))
    if "frobenius" in name:
        rows = rows.float()  # its caller widens them
    value = PAIRS[name][0](rows.requires_grad_())
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(exact, rel=1e-6)
    value.backward()
    assert rows.grad.dtype == rows.dtype and rows.grad.isfinite().all() and rows.grad.any()


@pytest.mark.parametrize("name", PAIRS)
def test_no_rows_and_zero_rows_give_zero_gradients(name):
    for rows in (torch.zeros(0, 3), torch.zeros(4, 3)):
        rows.requires_grad_()
        value = PAIRS[name][0](rows)
        value.backward()
        assert float(value.detach()) == (0.0 if name != "variance" or len(rows) == 0 else pytest.approx(0.99))
        assert not rows.grad.any()


def test_equal_and_zero_singular_values_are_safe():
    square = torch.eye(4, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(global_spectral_ratio(square, 2), square)
    assert gradient.isfinite().all()
    flat = (normal(6, 1) @ normal(1, 4, seed=1)).requires_grad_()  # rank 1: the ratio is constant
    value = global_spectral_ratio(flat, 1)
    assert float(value) == pytest.approx(-1.0, abs=1e-12)
    assert float(torch.autograd.grad(value, flat)[0].abs().max()) < 1e-9


def test_a_large_matrix_uses_the_krylov_space():
    generator = torch.Generator().manual_seed(0)
    decaying = torch.randn(400, 320, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 320).double()
    decaying.requires_grad_()
    value, plain = global_frobenius_ratio(decaying, 5), spectral_ratio(decaying, 5, "frobenius")
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    one, other = (torch.autograd.grad(v, decaying)[0] for v in (value, plain))
    assert float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.99999


def test_error_of_small_singular_values():
    """Hold the error of the ratio to the bound that follows from squaring the matrix (`balora.losses.spectral_gram`).

    An entry of the 4 × 4 Gram matrix is a sum of 6 products, and eigh adds an error of a few units for each of its 4 rows.
    So a squared singular value is off by at most (6 + 4) ε σ1² and σ_i by that over 2 σ_i. The ratio σ1 / Σ σ, with σ1 = 1
    and Σ σ near 1, is off by the sum of these. Smaller values than √(20 ε) σ1, which is 7e-8, count as 0.
    """
    left, right = torch.linalg.qr(normal(6, 6)).Q, torch.linalg.qr(normal(4, 4, seed=1)).Q

    def check(small: float, expected: list[float]) -> None:
        rows = left[:, :4] * torch.tensor([1.0, 1e-5, small, 0.0], dtype=torch.float64) @ right.T
        bound = sum((6 + 4) * torch.finfo(torch.float64).eps / (2 * value) for value in expected)
        assert float(global_spectral_ratio(rows, 1)) == pytest.approx(-1.0 / sum(expected), abs=bound)

    check(1e-5 / 2, expected=[1.0, 1e-5, 1e-5 / 2])
    check(1e-9, expected=[1.0, 1e-5])  # lost: it counts as 0


def test_refuses_second_derivatives_and_wrong_shapes():
    rows = normal(5, 3).requires_grad_()
    (gradient,) = torch.autograd.grad(global_spectral_ratio(rows, 1), rows, create_graph=False)
    assert gradient.shape == rows.shape
    for name in ("spectral 1", "frobenius 2"):
        with pytest.raises(BALoraError, match="first derivative only"):
            torch.autograd.grad(PAIRS[name][0](rows), rows, create_graph=True)
    with pytest.raises(BALoraError, match="must be a matrix"):
        global_covariance(torch.zeros(3))
    with pytest.raises(BALoraError, match="rank must be at least 1"):
        global_spectral_ratio(rows, 0)
