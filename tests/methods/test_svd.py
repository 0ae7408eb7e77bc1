from __future__ import annotations

import pytest
import torch

from balora.methods.init import svd as svd_module
from balora.methods.init.svd import truncated_svd


def decaying(rows: int, columns: int, power: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Return a matrix with singular values 1, 2^-p, 3^-p, … and random bases, in float64."""
    generator = torch.Generator().manual_seed(seed)
    smaller = min(rows, columns)
    left = torch.linalg.qr(torch.randn(rows, smaller, generator=generator, dtype=torch.float64)).Q
    right = torch.linalg.qr(torch.randn(columns, smaller, generator=generator, dtype=torch.float64)).Q
    return left * torch.arange(1, smaller + 1).double() ** -power @ right.T


def reconstructed(u: torch.Tensor, s: torch.Tensor, vt: torch.Tensor) -> torch.Tensor:
    return (u * s @ vt).double()


@pytest.mark.parametrize("shape", [(37, 53), (53, 37), (41, 41)])
@pytest.mark.parametrize("method", ["exact", "auto", "randomized"])
def test_shapes_order_and_orthonormal_bases(shape, method):
    u, s, vt = truncated_svd(decaying(*shape), 5, method=method)
    assert (u.shape, s.shape, vt.shape) == ((shape[0], 5), (5,), (5, shape[1]))
    assert {u.dtype, s.dtype, vt.dtype} == {torch.float32}
    assert (s.diff() <= 0).all() and (s > 0).all()
    torch.testing.assert_close(u.T @ u, torch.eye(5), atol=1e-5, rtol=0)
    torch.testing.assert_close(vt @ vt.T, torch.eye(5), atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(37, 53), (53, 37)])
def test_exact_is_the_best_approximation(shape):
    matrix = decaying(*shape)
    error = (matrix - reconstructed(*truncated_svd(matrix, 7, method="exact"))).norm()
    best = torch.linalg.svdvals(matrix)[7:].norm()  # Eckart-Young, float64
    assert error <= best * (1 + 1e-5)


@pytest.mark.parametrize("shape", [(300, 180), (180, 300)])
@pytest.mark.parametrize("power", [0.5, 1.0])
def test_randomized_is_within_a_percent_of_the_best(shape, power):
    matrix = decaying(*shape, power=power)
    best = torch.linalg.svdvals(matrix)[16:].norm()
    error = (matrix - reconstructed(*truncated_svd(matrix, 16, method="randomized"))).norm()
    assert best <= error * (1 + 1e-6)
    assert error <= 1.01 * best
    # The limit is strict: without power iterations and oversampling the error is larger.
    rough = truncated_svd(matrix, 16, method="randomized", iterations=0, oversampling=0)
    assert (matrix - reconstructed(*rough)).norm() > 1.01 * best


def test_the_sketch_depends_only_on_the_seed():
    matrix = decaying(120, 90, power=0.3)
    draw = lambda seed: truncated_svd(matrix, 6, method="randomized", iterations=0, seed=seed)  # noqa: E731
    torch.manual_seed(1)
    first = draw(3)
    torch.manual_seed(2)
    again = draw(3)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[1], draw(4)[1])


def test_the_global_generator_is_unchanged():
    state = torch.random.get_rng_state()
    truncated_svd(decaying(60, 50), 4, method="randomized")
    assert torch.equal(state, torch.random.get_rng_state())


def test_auto_is_exact_for_small_matrices_and_large_ranks(monkeypatch):
    called = []
    real = svd_module._randomized
    monkeypatch.setattr(svd_module, "_randomized", lambda *args: called.append(1) or real(*args))
    monkeypatch.setattr(svd_module, "EXACT_BELOW", 32)
    matrix = decaying(90, 80)
    truncated_svd(decaying(32, 90), 4)
    truncated_svd(matrix, 30)  # with oversampling more than half of the 80 columns
    assert not called
    truncated_svd(matrix, 4)
    assert called


@pytest.mark.parametrize("method", ["exact", "randomized"])
def test_full_rank_reproduces_the_matrix(method):
    matrix = decaying(20, 33)
    torch.testing.assert_close(reconstructed(*truncated_svd(matrix, 20, method=method)), matrix, atol=1e-6, rtol=0)


def test_half_precision_is_converted_to_float32():
    _, s, _ = truncated_svd(decaying(24, 16).bfloat16(), 3)
    assert s.dtype == torch.float32
    torch.testing.assert_close(s, torch.linalg.svdvals(decaying(24, 16).bfloat16().float())[:3])
