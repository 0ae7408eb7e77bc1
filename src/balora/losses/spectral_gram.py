r"""The spectral ratio (eq. 11) from a Gram matrix, where the matrix itself is in pieces.

The eigenvalues of :math:`G = A^\top A` (or :math:`A A^\top`) are the squared singular values of A, its trace is
:math:`\lVert A \rVert_F^2`, and its eigenvectors give the gradient of each piece of A by itself:

.. math:: \frac{\partial L}{\partial A} = -\frac{A V_k \Sigma_k^{-1} V_k^\top}{\lVert A \rVert_F}
          + \frac{\sum_{i \le k} \sigma_i}{\lVert A \rVert_F^3} A

Squaring costs precision: in float64, in which G is held, the error of a singular value is some :math:`10^{-16}
\sigma_1^2 / \sigma_i`, and one below 1e-7 of the largest is lost. The k largest and the norm are all that is asked.
Shapes: A is M × E, n its shorter or chosen side, k the rank asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from balora.losses.collectives import process_count, sum_over_processes
from balora.losses.truncated_svd import leading_eigenpairs
from balora.regularizers.checks import refuse_second_derivative
from balora.regularizers.spectral import noise_floor


class GramSpectrum(NamedTuple):
    """What the gradient needs to know of A: V_k (or U_k), one over Σ_k and the norm, Σ σ over the norm cubed."""

    vectors_nk: Tensor
    inverse_k: Tensor
    pull: Tensor

    @classmethod
    def of(cls, gram_nn: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, GramSpectrum]:
        """Return minus the ratio and the spectrum; NaN of what is not finite, 0 of nothing.

        Args:
            gram_nn: G, float64.
            rank: k, at least 1.
            dtype: A's, for the results, and because its rounding is no direction.
        """
        norm = gram_nn.trace().sqrt()
        if not torch.isfinite(norm):  # the decomposition would raise; a diverged step is the Trainer's to skip
            nan = norm.to(dtype) * torch.nan
            return nan, cls(nan.expand(len(gram_nn), 1), nan.reshape(1), nan)
        if not norm > 0:
            zero = norm.to(dtype)
            return zero, cls(zero.expand(len(gram_nn), 1), zero.reshape(1), zero)
        vectors_nk, squares_k = leading_eigenpairs(gram_nn, rank)
        lost_k = squares_k <= noise_floor(squares_k[:1], len(gram_nn), gram_nn.dtype)
        values_k = squares_k.masked_fill(lost_k, 0.0).sqrt()
        kept_k = values_k > noise_floor(values_k[:1], len(gram_nn), dtype)
        inverse_k = torch.where(kept_k, 1.0 / (values_k * norm), 0.0)
        total = values_k.sum()
        spectrum = cls(vectors_nk.to(dtype), inverse_k.to(dtype), (total / norm**3).to(dtype))
        return -(total / norm).to(dtype), spectrum


def global_frobenius_ratio(matrix_ME: Tensor, rank: int) -> Tensor:
    r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert A \rVert_F` of the rows of all processes, from their Gram matrix.

    Every process has to call it, also one without a row. What travels is E × E in float64.

    Args:
        matrix_ME: This process's rows of A, float32 or wider.
        rank: k, at least 1.

    Returns:
        Scalar in [-√k, 0), the same in all processes, in A's dtype; differentiable once. Of nothing it is 0.

    Example:
        >>> round(float(global_frobenius_ratio(torch.diag(torch.tensor([4.0, 3.0, 0.0])), rank=1)), 4)
        -0.8
    """
    if not torch.is_grad_enabled():
        matrix_ME = matrix_ME.detach()
    ratio: Tensor = _GlobalRatio.apply(matrix_ME, rank)
    return ratio


class _GlobalRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix_ME: Tensor, rank: int) -> Tensor:
        wide_ME = matrix_ME.double()
        ratio, (right_Ek, inverse_k, pull) = GramSpectrum.of(
            sum_over_processes(wide_ME.T @ wide_ME), rank, matrix_ME.dtype
        )
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pull * matrix_ME - (matrix_ME @ right_Ek * inverse_k) @ right_Ek.T)
        return ratio

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("The spectral term")
        (gradient_ME,) = ctx.saved_tensors
        # Of the average over the processes, this one's part: see `balora.losses.collectives`.
        return process_count() * upstream * gradient_ME, None
