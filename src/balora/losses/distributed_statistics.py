r"""Batch statistics of classification over all processes, from small sums of the rows (eq. 5-7, method.md, departure 7).

The plain forms are :mod:`balora.regularizers` on the rows of all processes; the tests compare the two. With the rows
extended by a one, :math:`X = [1, Z]`, the matrix :math:`X^\top X` contains N, the sums and the Gram matrix, and its sum
over the processes is that of all rows. It is in float64, because the covariance is a difference of its entries.
Every process must call these functions with its own rows (any floating dtype), also one without a row. The results are
scalars in float32 or wider, the same in all processes, with the plain forms' ranges and errors.
Shapes: N rows of this process, D classes or features, E = D + 1.
"""

import torch
from torch import Tensor

from balora.losses.collectives import gather_rows, row_counts, sum_across_processes
from balora.regularizers.checks import require_matrix, widened
from balora.regularizers.spectral import noise_floor, ratio_and_derivative, spectral_ratio, with_gradient


def global_covariance(rows_ND: Tensor) -> Tensor:
    """Return :func:`balora.regularizers.covariance` of the rows of all processes; 0 with fewer than 2 rows in all.

    Example:
        >>> float(global_covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))
        4.0
    """
    covariance_DD, _ = _covariance(rows_ND)
    off_diagonal_DD = covariance_DD - covariance_DD.diagonal().diag()
    return (off_diagonal_DD.square().sum() / max(rows_ND.shape[1], 1)).to(widened(rows_ND).dtype)


def global_variance_hinge(rows_ND: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Return :func:`balora.regularizers.variance_hinge` of the rows of all processes; 0 with fewer than 2 rows in all.

    Example:
        >>> float(global_variance_hinge(torch.tensor([[2.0], [-2.0]])))
        0.0
    """
    covariance_DD, count = _covariance(rows_ND)
    # Rounding may make a variance of 0 negative, by far less than epsilon.
    deviation_D = (covariance_DD.diagonal() + epsilon).sqrt()
    hinge = (1.0 - deviation_D).clamp(min=0.0).sum() / max(rows_ND.shape[1], 1)
    return (hinge * (count >= 2)).to(widened(rows_ND).dtype)


def global_logit_variance(logits_ND: Tensor) -> Tensor:
    """Return the variance of each column over the rows of all processes (divided by N), mean over columns.

    Example:
        >>> float(global_logit_variance(torch.tensor([[2.0], [-2.0]])))
        4.0
    """
    covariance_DD, count = _covariance(logits_ND)
    variance_D = covariance_DD.diagonal() * (count - 1.0) / count
    return variance_D.mean().clamp(min=0.0).to(widened(logits_ND).dtype)


def global_spectral_ratio(rows_ND: Tensor, rank: int) -> Tensor:
    r"""Return the nuclear form of :func:`balora.regularizers.spectral_ratio` of the rows of all processes.

    If there are at least as many rows in all as columns, the singular values are the roots of the eigenvalues of
    :math:`G = Z^\top Z`, which is a sum over the processes. The gradient is
    :math:`\partial \sigma_i / \partial G = v_i v_i^\top / 2 \sigma_i`. A singular value below some 1e-7 of the largest
    is lost in the rounding of its square and counts as 0. With fewer rows than columns, the rows themselves are gathered,
    because they are smaller than G. An entry that is not finite gives NaN in all processes.

    Example:
        >>> round(float(global_spectral_ratio(torch.diag(torch.tensor([3.0, 1.0])), rank=1)), 6)
        -0.75
    """
    require_matrix(rows_ND, "The spectrum's input", "rows × columns")
    if sum(row_counts(rows_ND)) < rows_ND.shape[1] or rank < 1:
        return spectral_ratio(gather_rows(rows_ND), rank)
    wide_ND = rows_ND.double()
    gram_DD = sum_across_processes(wide_ND.T @ wide_ND)
    return with_gradient(_gram_ratio, gram_DD, rank, widened(rows_ND).dtype)


def _covariance(rows_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return covariance (float64) and number of the rows of all processes; with fewer than 2 rows the covariance is 0."""
    require_matrix(rows_ND, "The covariance's input", "sequences × classes")
    rows_NE = torch.cat([rows_ND.new_ones(len(rows_ND), 1), rows_ND], dim=1).double()
    sums_EE = sum_across_processes(rows_NE.T @ rows_NE)
    count, sum_D, gram_DD = sums_EE[0, 0], sums_EE[0, 1:], sums_EE[1:, 1:]
    centred_DD = gram_DD - sum_D.outer(sum_D) / count.clamp(min=1.0)
    return centred_DD / (count - 1.0).clamp(min=1.0), count


def _gram_ratio(
    needed: tuple[bool, ...], gram_DD: Tensor, rank: int, dtype: torch.dtype
) -> tuple[Tensor, list[Tensor | None]]:
    """Return value and gradient from the eigenvectors; the backward of torch's ``eigh`` would divide by the gaps."""
    if not torch.isfinite(gram_DD).all():  # eigh would raise, but the trainer handles a diverged step itself
        return gram_DD.new_full((), torch.nan, dtype=dtype), [torch.full_like(gram_DD, torch.nan)]
    squares_D, vectors_DD = torch.linalg.eigh(gram_DD)
    squares_D, vectors_DD = squares_D.flip(0), vectors_DD.flip(1)
    rounding = squares_D <= noise_floor(squares_D[:1].clamp(min=0.0), len(squares_D), gram_DD.dtype)
    values_D = squares_D.masked_fill(rounding, 0.0).sqrt()
    ratio, derivative_D = ratio_and_derivative(values_D, rank, frobenius=False, dtype=dtype)
    by_square_D = torch.where(values_D > 0, derivative_D / (2.0 * values_D), 0.0)  # with respect to σ²
    return -ratio.to(dtype), [(vectors_DD * -by_square_D) @ vectors_DD.T]
