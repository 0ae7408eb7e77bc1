r"""The spectral ratio (eq. 11) from a Gram matrix, for a matrix that is available in pieces only.

The eigenvalues of :math:`G = A^\top A` (or :math:`A A^\top`) are the squared singular values of A, its trace is
:math:`\lVert A \rVert_F^2`, and its eigenvectors give the gradient of each piece of A separately:

.. math:: \frac{\partial L}{\partial A} = -\frac{A V_k \Sigma_k^{-1} V_k^\top}{\lVert A \rVert_F}
          + \frac{\sum_{i \le k} \sigma_i}{\lVert A \rVert_F^3} A

Squaring costs precision. G is in float64, so the error of a singular value is some :math:`10^{-16} \sigma_1^2 / \sigma_i`,
and a singular value below 1e-7 of the largest is lost. Only the k largest and the norm are needed here.
Shapes: A is M × E, n the side of G (M or E), k the spectral rank.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from balora.losses.collectives import sum_across_processes, world_size
from balora.losses.truncated_svd import leading_eigenpairs
from balora.regularizers.precomputed import with_gradient
from balora.regularizers.spectral import noise_floor


class GramSpectrum(NamedTuple):
    r"""Quantities of A that its gradient is made of.

    Attributes:
        vectors_nk: V_k, or U_k for :math:`A A^\top`.
        inverse_k: :math:`1 / (\sigma_i \lVert A \rVert_F)`; 0 if σ_i is rounding noise.
        pull: :math:`\sum_{i \le k} \sigma_i / \lVert A \rVert_F^3`.
    """

    vectors_nk: Tensor
    inverse_k: Tensor
    pull: Tensor

    @classmethod
    def of(cls, gram_nn: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, GramSpectrum]:
        """Return the negative ratio and the spectrum. The ratio is NaN if G is not finite, and 0 if A is zero.

        Args:
            gram_nn: G, float64.
            rank: k, at least 1.
            dtype: Dtype of A and of the results. Below its rounding error a singular value counts as noise.
        """
        norm = gram_nn.trace().sqrt()
        if not torch.isfinite(norm) or not norm > 0:  # eigh would raise, but the trainer handles a diverged step itself
            value = norm.to(dtype) * (0.0 if torch.isfinite(norm) else torch.nan)
            return value, cls(value.expand(len(gram_nn), 1), value.reshape(1), value)
        vectors_nk, squares_k = leading_eigenpairs(gram_nn, rank)
        lost_k = squares_k <= noise_floor(squares_k[:1], len(gram_nn), gram_nn.dtype)
        values_k = squares_k.masked_fill(lost_k, 0.0).sqrt()
        signal_k = values_k > noise_floor(values_k[:1], len(gram_nn), dtype)
        inverse_k = torch.where(signal_k, 1.0 / (values_k * norm), 0.0)
        total = values_k.sum()
        spectrum = cls(vectors_nk.to(dtype), inverse_k.to(dtype), (total / norm**3).to(dtype))
        return -(total / norm).to(dtype), spectrum


def global_frobenius_ratio(matrix_ME: Tensor, rank: int) -> Tensor:
    r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert A \rVert_F` of the rows of all processes, from their Gram matrix.

    Every process must call it with its rows of A (float32 or wider), also one without a row. The processes exchange an
    E × E matrix in float64. The result is in A's dtype and differentiable once; for zero or no rows it is 0.

    Example:
        >>> round(float(global_frobenius_ratio(torch.diag(torch.tensor([4.0, 3.0, 0.0])), rank=1)), 4)
        -0.8
    """
    return with_gradient("The spectral term", _ratio_and_gradient, matrix_ME, rank)


def _ratio_and_gradient(needed: tuple[bool, ...], matrix_ME: Tensor, rank: int) -> tuple[Tensor, list[Tensor | None]]:
    wide_ME = matrix_ME.double()
    gram_EE = sum_across_processes(wide_ME.T @ wide_ME)
    ratio, (right_Ek, inverse_k, pull) = GramSpectrum.of(gram_EE, rank, matrix_ME.dtype)
    if not needed[0]:
        return ratio, [None]
    gradient_ME = pull * matrix_ME - (matrix_ME @ right_Ek * inverse_k) @ right_Ek.T
    # Gradients are averaged over the processes: see `balora.losses.collectives`.
    return ratio, [world_size() * gradient_ME]
