"""Spectral term: concentrate the energy of the batch's outputs in few directions (eq. 7 and 11).

These are the plain formulas. Training uses :mod:`balora.losses`, which the tests compare with these.
Shapes: A is N × D (sequences × classes, or valid tokens × vocabulary), P = min(N, D) singular values, descending.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from balora.errors import BALoraError, suggest
from balora.regularizers.checks import refuse_second_derivative, require_matrix, require_rank, widened

Norm = Literal["nuclear", "frobenius"]
_NORMS = ("nuclear", "frobenius")
_Compute = Callable[..., tuple[Tensor, Sequence[Tensor | None]]]


def spectral_ratio(matrix: Tensor, rank: int, norm: Norm = "nuclear") -> Tensor:
    r"""Negative sum of the k largest singular values, divided by the matrix norm.

    .. math:: L_{SVDR} = - \frac{\sum_{i \le k} \sigma_i}{\sum_j \sigma_j} \;\text{(nuclear, eq. 7)}, \qquad
              L_{SVDR} = - \frac{\sum_{i \le k} \sigma_i}{\lVert A \rVert_F} \;\text{(Frobenius, eq. 11)}

    The singular values are exact. The gradient is analytic, :math:`\partial \sigma_i / \partial A = u_i v_i^\top`. It
    never divides by the gap between two singular values, so equal values are safe. A direction of singular value 0 gets
    no gradient, so a rank-deficient matrix is safe too. For k ≥ P the nuclear form is constant: see
    :func:`spectral_is_constant`.

    Args:
        matrix: N × D outputs, any floating dtype. An entry that is not finite gives NaN.
        rank: k, at least 1. Above P it means P.
        norm: ``"nuclear"`` for classification, ``"frobenius"`` for generation.

    Returns:
        Scalar without unit, in [-1, 0) for the nuclear form and [-√k, 0) for Frobenius; float32 or wider. For a zero or
        empty matrix it is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: ``matrix`` is not two-dimensional or not floating point, ``rank`` < 1, or ``norm`` is unknown.

    Example:
        >>> round(float(spectral_ratio(torch.diag(torch.tensor([3.0, 1.0])), rank=1)), 6)
        -0.75

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 7 and 11.
    """
    require_matrix(matrix, "The spectrum's input", "rows × columns")
    _check(rank, norm)
    if matrix.numel() == 0:
        return widened(matrix).sum()
    return with_gradient(_value_and_gradient, widened(matrix), rank, norm == "frobenius")


def spectral_is_constant(rows: int, columns: int, rank: int, norm: Norm = "nuclear") -> bool:
    """Return whether the spectral term has the same value for every non-zero matrix of a shape.

    The nuclear ratio is -1 if the k largest singular values are all there are, k ≥ min(N, D). With the paper's k of 5
    that is so on every task of GLUE. The Frobenius ratio then still changes (it is minus the nuclear over the Frobenius
    norm, between -√P and -1); it is constant only if there is a single singular value.

    Args:
        rows: N.
        columns: D.
        rank: k, at least 1.
        norm: Form of the term.

    Returns:
        True if the value is constant and the gradient 0.

    Raises:
        BALoraError: ``rank`` < 1 or ``norm`` is unknown.

    Example:
        >>> spectral_is_constant(32, 3, rank=5), spectral_is_constant(32, 3, rank=5, norm="frobenius")
        (True, False)
    """
    _check(rank, norm)
    smaller = min(rows, columns)
    return rank >= smaller if norm == "nuclear" else smaller <= 1


def with_gradient(compute: _Compute, *arguments: Any) -> Tensor:
    """Return a scalar on the graph; its backward only multiplies the precomputed gradients by the upstream gradient.

    ``compute`` takes a tuple of flags and the arguments. It returns the value and the gradients of the leading arguments.
    A gradient may be None if the argument's flag is False.
    """
    recording = torch.is_grad_enabled()
    needed = tuple(recording and isinstance(value, Tensor) and value.requires_grad for value in arguments)
    value: Tensor = _WithGradient.apply(compute, needed, *arguments)
    return value


class _WithGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: _Compute, needed: tuple[bool, ...], *arguments: Any) -> Tensor:
        value, gradients = compute(needed, *arguments)
        ctx.save_for_backward(*gradients)
        ctx.without_gradient = len(arguments) - len(gradients)
        return value

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("The spectral term")
        gradients = (None if gradient is None else upstream * gradient for gradient in ctx.saved_tensors)
        return None, None, *gradients, *[None] * ctx.without_gradient


def _check(rank: int, norm: str) -> None:
    require_rank(rank)
    if norm not in _NORMS:
        raise BALoraError(f"The spectral norm is 'nuclear' or 'frobenius', not {norm!r}.{suggest(norm, _NORMS)}")


def _value_and_gradient(
    needed: tuple[bool, ...], matrix: Tensor, rank: int, frobenius: bool
) -> tuple[Tensor, list[Tensor | None]]:
    if not torch.isfinite(matrix).all():  # the SVD would raise, but the trainer handles a diverged step itself
        return matrix.new_full((), torch.nan), [torch.full_like(matrix, torch.nan)]
    if not needed[0]:
        return -_ratio(torch.linalg.svdvals(matrix), rank, frobenius)[0], [None]
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    ratio, derivative = ratio_and_derivative(values, rank, frobenius, values.dtype)
    return -ratio, [(left * -derivative) @ right]


def ratio_and_derivative(values: Tensor, rank: int, frobenius: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the positive ratio of descending singular values and its derivative with respect to each of them.

    A singular value that is rounding noise of a matrix in ``dtype`` gets the derivative 0.
    """
    ratio, norm = _ratio(values, rank, frobenius)
    # ∂ ratio / ∂ σ_i = ([i ≤ k] - ratio · ∂ norm / ∂ σ_i) / norm
    norm_derivative = values / norm if frobenius else torch.ones_like(values)
    in_top_k = (torch.arange(len(values), device=values.device) < rank).to(values)
    derivative = (in_top_k - ratio * norm_derivative) / norm
    return ratio, derivative.masked_fill(values <= noise_floor(values[:1], len(values), dtype), 0.0)


def _ratio(values: Tensor, rank: int, frobenius: bool) -> tuple[Tensor, Tensor]:
    """Return the positive ratio, 0 for a zero matrix, and the norm in its denominator, 1 for a zero matrix."""
    norm = torch.linalg.vector_norm(values) if frobenius else values.sum()
    norm = torch.where(norm > 0, norm, 1.0)
    return values[:rank].sum() / norm, norm


def noise_floor(largest: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the size below which a singular value of a matrix in ``dtype`` is rounding noise."""
    return largest * 10.0 * count**0.5 * torch.finfo(dtype).eps
