"""Spectrum: gather the energy of the batch's outputs in few directions (eq. 7 and 11).

Shapes: A is N × D (sequences × classes, or valid tokens × vocabulary), P = min(N, D) singular values, descending.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from balora.errors import BALoraError, suggest
from balora.regularizers.checks import refuse_second_derivative, require_matrix, widened

Norm = Literal["nuclear", "frobenius"]
_NORMS = ("nuclear", "frobenius")


def spectral_ratio(matrix: Tensor, rank: int, norm: Norm = "nuclear") -> Tensor:
    r"""Minus the share of the k largest singular values in the whole.

    .. math:: L_{SVDR} = - \frac{\sum_{i \le k} \sigma_i}{\sum_j \sigma_j} \;\text{(nuclear, eq. 7)}, \qquad
              L_{SVDR} = - \frac{\sum_{i \le k} \sigma_i}{\lVert A \rVert_F} \;\text{(Frobenius, eq. 11)}

    The singular values are exact. The gradient is analytic, :math:`\partial \sigma_i / \partial A = u_i v_i^\top`: it
    never divides by a gap, so equal singular values are safe, and directions of singular value 0 get none, so a
    rank-deficient matrix is too. Where k ≥ P the nuclear form does not move: see :func:`spectral_is_constant`.

    Args:
        matrix: N × D outputs, any floating dtype. What is not finite gives NaN.
        rank: k, at least 1. Above P it means P.
        norm: ``"nuclear"`` for classification, ``"frobenius"`` for generation.

    Returns:
        Scalar without unit, in [-1, 0) for the nuclear form and [-√k, 0) for Frobenius; float32 or wider. Of a zero or
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
    if not torch.is_grad_enabled():  # a Function asks what requires a gradient, not whether anyone records it
        matrix = matrix.detach()
    ratio: Tensor = _SpectralRatio.apply(widened(matrix), rank, norm == "frobenius")
    return ratio


def spectral_is_constant(rows: int, columns: int, rank: int, norm: Norm = "nuclear") -> bool:
    """Say whether the spectral term cannot move, whatever the (non-zero) matrix.

    The nuclear ratio is -1 as soon as the k largest singular values are all of them, k ≥ min(N, D): so it is on every
    task of GLUE with the paper's k of 5. The Frobenius ratio still moves then (it is minus the nuclear over the
    Frobenius norm, between -√P and -1); it stands still only when there is a single singular value.

    Args:
        rows: N.
        columns: D.
        rank: k, at least 1.
        norm: Which form of the term.

    Returns:
        True when value and gradient are the same for every non-zero matrix of this shape.

    Raises:
        BALoraError: ``rank`` < 1 or ``norm`` is unknown.

    Example:
        >>> spectral_is_constant(32, 3, rank=5), spectral_is_constant(32, 3, rank=5, norm="frobenius")
        (True, False)
    """
    _check(rank, norm)
    smaller = min(rows, columns)
    return rank >= smaller if norm == "nuclear" else smaller <= 1


def _check(rank: int, norm: str) -> None:
    if rank < 1:
        raise BALoraError(f"The spectral rank must be at least 1, and it is {rank}.")
    if norm not in _NORMS:
        raise BALoraError(f"The spectral norm is 'nuclear' or 'frobenius', not {norm!r}.{suggest(norm, _NORMS)}")


class _SpectralRatio(torch.autograd.Function):
    """One SVD for the value and the gradient; torch's own ``svdvals`` would take a second one on the way back."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, rank: int, frobenius: bool) -> Tensor:
        if not torch.isfinite(matrix).all():  # the decomposition would raise; a diverged step is the Trainer's to skip
            ctx.save_for_backward(torch.full_like(matrix, torch.nan))
            return matrix.new_full((), torch.nan)
        if not ctx.needs_input_grad[0]:
            values = torch.linalg.svdvals(matrix)
            return -_share(values, rank, frobenius)[0]
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        share, slopes = ratio_and_slopes(values, rank, frobenius, values.dtype)
        ctx.save_for_backward((left * -slopes) @ right)
        return -share

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("The spectral term")
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def ratio_and_slopes(values: Tensor, rank: int, frobenius: bool, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the ratio (positive) of descending singular values, and its derivative by each of them.

    Args:
        values: σ, of a matrix held in ``dtype``.
        rank: k.
        frobenius: Whether the ratio is to the Frobenius norm, else to the nuclear one.
        dtype: Where its rounding begins, the derivative is 0.
    """
    share, whole = _share(values, rank, frobenius)
    # d share / d σ_i = ([i ≤ k] - share · d whole / d σ_i) / whole, and 0 where σ_i is rounding.
    slope = values / whole if frobenius else torch.ones_like(values)
    inside = torch.zeros_like(values)
    inside[:rank] = 1.0
    slopes = (inside - share * slope) / whole
    return share, slopes.masked_fill(values <= noise_floor(values[:1], len(values), dtype), 0.0)


def _share(values: Tensor, rank: int, frobenius: bool) -> tuple[Tensor, Tensor]:
    """Return the ratio (positive; 0 for a zero matrix) and the norm it is taken of (never 0)."""
    whole = torch.linalg.vector_norm(values) if frobenius else values.sum()
    whole = torch.where(whole > 0, whole, 1.0)
    return values[:rank].sum() / whole, whole


def noise_floor(largest: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the size below which a singular value, of a matrix held in ``dtype``, is rounding."""
    return largest * 10.0 * count**0.5 * torch.finfo(dtype).eps
