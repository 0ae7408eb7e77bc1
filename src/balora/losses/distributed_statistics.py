r"""The batch statistics of classification over all processes, from small sums of the rows (eq. 5-7, METHOD §6.7).

The plain forms are :mod:`balora.regularizers` over the rows of all processes; the tests hold the two equal. Of the rows
extended by a one, :math:`X = [1, Z]`, the matrix :math:`X^\top X` holds N, the sums and the Gram matrix at once and adds
up over the processes. It is in float64: the covariance is a difference of its entries.
Shapes: N rows of this process, D classes or features, E = D + 1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from balora.losses.collectives import rows_in_processes, rows_of_all_processes, sum_over_processes
from balora.regularizers.checks import refuse_second_derivative, require_matrix, widened
from balora.regularizers.spectral import noise_floor, ratio_and_slopes, spectral_ratio


def global_covariance(rows_ND: Tensor) -> Tensor:
    """:func:`balora.regularizers.covariance` of the rows of all processes.

    Every process has to call it, also one without a row.

    Args:
        rows_ND: This process's rows, any floating dtype.

    Returns:
        Scalar, 0 or more, the same in all processes; float32 or wider. With fewer than 2 rows in all it is 0.

    Raises:
        BALoraError: ``rows_ND`` is not two-dimensional or not floating point.

    Example:
        >>> float(global_covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))
        4.0

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 5-6.
    """
    covariance_DD, _ = _covariance(rows_ND)
    off_diagonal_DD = covariance_DD - covariance_DD.diagonal().diag()
    return (off_diagonal_DD.square().sum() / max(rows_ND.shape[1], 1)).to(widened(rows_ND).dtype)


def global_variance_hinge(rows_ND: Tensor, epsilon: float = 1e-4) -> Tensor:
    """:func:`balora.regularizers.variance_hinge` of the rows of all processes.

    Every process has to call it, also one without a row.

    Args:
        rows_ND: This process's rows, any floating dtype.
        epsilon: Keeps the root differentiable at a variance of 0.

    Returns:
        Scalar in [0, 1], the same in all processes; float32 or wider. With fewer than 2 rows in all it is 0.

    Raises:
        BALoraError: ``rows_ND`` is not two-dimensional or not floating point.

    Example:
        >>> float(global_variance_hinge(torch.tensor([[2.0], [-2.0]])))
        0.0

    Reference: Bardes et al., VICReg, ICLR 2022, eq. 1-2.
    """
    covariance_DD, count = _covariance(rows_ND)
    # Rounding may leave a variance of 0 below it, by far less than epsilon.
    deviation_D = (covariance_DD.diagonal() + epsilon).sqrt()
    hinge = (1.0 - deviation_D).clamp(min=0.0).sum() / max(rows_ND.shape[1], 1)
    return (hinge * (count >= 2)).to(widened(rows_ND).dtype)


def global_spectral_ratio(rows_ND: Tensor, rank: int) -> Tensor:
    r"""The nuclear form of :func:`balora.regularizers.spectral_ratio` of the rows of all processes.

    With at least as many rows in all as columns, the singular values are the roots of the eigenvalues of
    :math:`G = Z^\top Z`, which adds up over the processes, and the gradient is
    :math:`\partial \sigma_i / \partial G = v_i v_i^\top / 2 \sigma_i`. A singular value below some 1e-7 of the largest
    is lost in the rounding of its square and counts as 0. With fewer rows than columns the rows themselves are the
    smaller thing, and are gathered.

    Every process has to call it, also one without a row.

    Args:
        rows_ND: This process's rows, any floating dtype. What is not finite gives NaN in all processes.
        rank: k, at least 1.

    Returns:
        Scalar in [-1, 0), the same in all processes; float32 or wider, differentiable once. Of nothing it is 0.

    Raises:
        BALoraError: ``rows_ND`` is not two-dimensional or not floating point, or ``rank`` < 1.

    Example:
        >>> round(float(global_spectral_ratio(torch.diag(torch.tensor([3.0, 1.0])), rank=1)), 6)
        -0.75

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 7.
    """
    require_matrix(rows_ND, "The spectrum's input", "rows × columns")
    if sum(rows_in_processes(rows_ND)) < rows_ND.shape[1] or rank < 1:
        return spectral_ratio(rows_of_all_processes(rows_ND), rank)
    wide_ND = rows_ND.double()
    gram_DD = sum_over_processes(wide_ND.T @ wide_ND)
    ratio: Tensor = _GramRatio.apply(gram_DD, rank, widened(rows_ND).dtype)
    return ratio


def _covariance(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Covariance (float64) and number of the rows of all processes; 0 where there is no second row."""
    require_matrix(rows_ND, "The covariance's input", "sequences × classes")
    rows_NE = torch.cat([rows_ND.new_ones(len(rows_ND), 1), rows_ND], dim=1).double()
    sums_EE = sum_over_processes(rows_NE.T @ rows_NE)
    count, sum_D, gram_DD = sums_EE[0, 0], sums_EE[0, 1:], sums_EE[1:, 1:]
    centred_DD = gram_DD - sum_D.outer(sum_D) / count.clamp(min=1.0)
    return centred_DD / (count - 1.0).clamp(min=1.0), count


class _GramRatio(torch.autograd.Function):
    """Value and gradient from the eigenvectors; torch's own ``eigh`` would divide by the gaps on the way back."""

    @staticmethod
    def forward(ctx: Any, gram_DD: Tensor, rank: int, dtype: torch.dtype) -> Tensor:
        if not torch.isfinite(gram_DD).all():  # the decomposition would raise; a diverged step is the Trainer's to skip
            ctx.save_for_backward(torch.full_like(gram_DD, torch.nan))
            return gram_DD.new_full((), torch.nan, dtype=dtype)
        squares_D, vectors_DD = torch.linalg.eigh(gram_DD)
        squares_D, vectors_DD = squares_D.flip(0), vectors_DD.flip(1)
        rounding = squares_D <= noise_floor(squares_D[:1].clamp(min=0.0), len(squares_D), gram_DD.dtype)
        values_D = squares_D.masked_fill(rounding, 0.0).sqrt()
        share, slopes_D = ratio_and_slopes(values_D, rank, frobenius=False, dtype=dtype)
        halves_D = torch.where(values_D > 0, slopes_D / (2.0 * values_D), 0.0)
        ctx.save_for_backward((vectors_DD * -halves_D) @ vectors_DD.T)
        return -share.to(dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative("The spectral term")
        (gradient_DD,) = ctx.saved_tensors
        return upstream.to(gradient_DD.dtype) * gradient_DD, None, None
