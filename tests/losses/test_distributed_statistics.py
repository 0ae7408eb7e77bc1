"""Batch statistics across processes are those of one process that sees all rows, in value and gradient (METHOD 6.7)."""

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
    folder = tmp_path_factory.mktemp("global")
    run_script(Path(global_cases.__file__), str(folder))
    return [torch.load(folder / f"{rank}.pt") for rank in (0, 1)]


@pytest.mark.parametrize("name", global_cases.cases())
def test_two_processes_are_one_that_sees_all_rows(name, found):
    case = global_cases.cases()[name]()
    value, *gradients = case.value_and_gradients(slice(None), alone=True)
    (first, *of_first), (second, *of_second) = (results[name] for results in found)
    whole = (first + second) / 2  # the token terms are sums over each one's own tokens
    torch.testing.assert_close(whole, value, rtol=1e-10, atol=1e-10)
    if not name.startswith(("fused", "plain")):
        assert first == second
    for one, other, expected in zip(of_first, of_second, gradients, strict=True):
        torch.testing.assert_close((one + other) / 2, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["covariance of (9, 5, 3)", "spectral 1 of (6, 2, 11)", "fused, linear", "plain"])
def test_and_not_what_each_would_have_by_itself(name, found):
    """The comparison above can fail: without the other's rows the value is another."""
    case = global_cases.cases()[name]()
    alone = [
        case.value_and_gradients(rows, alone=True)[0] for rows in (slice(case.first), slice(case.first, case.rows))
    ]
    assert abs(float(sum(alone)) / 2 - float(found[0][name][0] + found[1][name][0]) / 2) > 1e-3


def test_what_is_not_finite_in_one_process_is_seen_in_all(found):
    for results in found:
        assert all(bool(value.isnan()) for value in results["broken"])


# -- the forms themselves, in one process --------------------------------------------------------------------------------

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
def test_the_sums_give_what_the_formula_gives(name, shape):
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
def test_narrower_rows_are_widened_and_get_their_gradient_back(name, dtype):
    rows = (0.5 * normal(7, 4)).to(dtype)
    exact = float(PAIRS[name][1](rows.double()))
    if "frobenius" in name:
        rows = rows.float()  # as its caller has them
    value = PAIRS[name][0](rows.requires_grad_())
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(exact, rel=1e-6)
    value.backward()
    assert rows.grad.dtype == rows.dtype and rows.grad.isfinite().all() and rows.grad.any()


@pytest.mark.parametrize("name", PAIRS)
def test_of_no_rows_and_of_zeros_nothing_comes(name):
    for rows in (torch.zeros(0, 3), torch.zeros(4, 3)):
        rows.requires_grad_()
        value = PAIRS[name][0](rows)
        value.backward()
        assert float(value.detach()) == (0.0 if name != "variance" or len(rows) == 0 else pytest.approx(0.99))
        assert not rows.grad.any()


def test_equal_singular_values_and_lost_directions_are_safe():
    square = torch.eye(4, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(global_spectral_ratio(square, 2), square)
    assert gradient.isfinite().all()
    flat = (normal(6, 1) @ normal(1, 4, seed=1)).requires_grad_()  # one direction: all of the spectrum, whatever it is
    value = global_spectral_ratio(flat, 1)
    assert float(value) == pytest.approx(-1.0, abs=1e-12)
    assert float(torch.autograd.grad(value, flat)[0].abs().max()) < 1e-9


def test_a_wide_matrix_goes_through_the_krylov_space():
    generator = torch.Generator().manual_seed(0)
    decaying = torch.randn(400, 320, generator=generator, dtype=torch.float64) * torch.logspace(0, -3, 320).double()
    decaying.requires_grad_()
    value, plain = global_frobenius_ratio(decaying, 5), spectral_ratio(decaying, 5, "frobenius")
    assert float(value) == pytest.approx(float(plain), rel=1e-6)
    one, other = (torch.autograd.grad(v, decaying)[0] for v in (value, plain))
    assert float(torch.cosine_similarity(one.flatten(), other.flatten(), dim=0)) > 0.99999


def test_what_a_small_singular_value_costs():
    """Its square is rounded: 1e-5 of the largest is known to 1e-6 of itself, 1e-9 is lost (`balora.losses.spectral_gram`)."""
    left, right = torch.linalg.qr(normal(6, 6)).Q, torch.linalg.qr(normal(4, 4, seed=1)).Q

    def of(small: float) -> tuple[float, float]:
        values = torch.tensor([1.0, 1e-5, small, 0.0], dtype=torch.float64)
        rows = left[:, :4] * values @ right.T
        return float(global_spectral_ratio(rows, 1)), -1.0 / float(values.sum())

    found, exact = of(1e-5 / 2)
    assert found == pytest.approx(exact, abs=1e-10)
    found, exact = of(1e-9)
    assert found == pytest.approx(exact, abs=2e-9)


def test_only_a_first_derivative_and_only_matrices():
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
