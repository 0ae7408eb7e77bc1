r"""The spectral ratio (eq. 11) from a Gram matrix, for a matrix that is available in pieces only.

The pieces are the rows of each process or, for the logits of a soft-capped head, columns (tokens of the vocabulary).
Soft-capping is not linear, so the spectrum of such logits cannot be computed from the hidden states alone. A first pass
over their pieces sums the Gram matrix. A second pass computes each piece's gradient and projects it back through the head.

The eigenvalues of :math:`G = A^\top A` (or :math:`A A^\top`) are the squared singular values of A, its trace is
:math:`\lVert A \rVert_F^2`, and its eigenvectors give the gradient of each piece of A separately:

.. math:: \frac{\partial L}{\partial A} = -\frac{A V_k \Sigma_k^{-1} V_k^\top}{\lVert A \rVert_F}
          + \frac{\sum_{i \le k} \sigma_i}{\lVert A \rVert_F^3} A

Squaring costs precision. G is in float64, so the error of a singular value is some :math:`10^{-16} \sigma_1^2 / \sigma_i`,
and a singular value below 1e-7 of the largest is lost. Only the k largest and the norm are needed here.
Shapes: A is M × E, n the side of G (M or E), k the spectral rank. For a soft-capped head: M valid tokens, d hidden size (D
as a suffix), V vocabulary, v tokens of a piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from balora.losses.collectives import sum_across_processes, world_size
from balora.losses.truncated_svd import leading_eigenpairs
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import widened
from balora.regularizers.spectral import noise_floor, with_gradient

_PIECE_BYTES = 64 * 2**20


class GramSpectrum(NamedTuple):
    """Factors in the formula of A's gradient."""

    vectors_nk: Tensor  # V_k, or U_k for A Aᵀ
    inverse_k: Tensor  # 1 / (σ_i ‖A‖_F), and 0 if σ_i is rounding noise
    pull: Tensor  # Σ_{i ≤ k} σ_i / ‖A‖_F³

    @classmethod
    def of(cls, gram_nn: Tensor, rank: int, dtype: torch.dtype) -> tuple[Tensor, GramSpectrum]:
        """Return the negative ratio and the spectrum of A, in A's dtype, from G in float64.

        The ratio is NaN if G is not finite, and 0 if A is zero.
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
    return with_gradient(_ratio_and_gradient, matrix_ME, rank)


def _ratio_and_gradient(needed: tuple[bool, ...], matrix_ME: Tensor, rank: int) -> tuple[Tensor, list[Tensor | None]]:
    wide_ME = matrix_ME.double()
    gram_EE = sum_across_processes(wide_ME.T @ wide_ME)
    ratio, (right_Ek, inverse_k, pull) = GramSpectrum.of(gram_EE, rank, matrix_ME.dtype)
    if not needed[0]:
        return ratio, [None]
    gradient_ME = pull * matrix_ME - (matrix_ME @ right_Ek * inverse_k) @ right_Ek.T
    # Gradients are averaged over the processes: see `balora.losses.collectives`.
    return ratio, [world_size() * gradient_ME]


def softcapped_spectral_ratio(
    hidden_MD: Tensor, head: LinearHead, rank: int, memory_budget: int | None = None
) -> Tensor:
    r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert Z \rVert_F` of the logits of a soft-capped head.

    The result is exact, a scalar in float32 or wider, differentiable once; with M = 0 it is 0. The head has the hidden
    states' dtype. Memory is M × M and never M × V (64 MiB for a piece by default); time is twice that of the head.
    """
    budget = memory_budget or _PIECE_BYTES

    def compute(
        needed: tuple[bool, ...], hidden_MD: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        wide_MD = widened(hidden_MD)
        gram_MM = wide_MD.new_zeros(len(wide_MD), len(wide_MD), dtype=torch.float64)
        for _, _, logits_Mv in _pieces(wide_MD, head, budget):
            gram_MM.addmm_(logits_Mv.double(), logits_Mv.double().T)
        ratio, spectrum = GramSpectrum.of(gram_MM, rank, wide_MD.dtype)
        gradients = _softcapped_gradients(wide_MD, head, spectrum, budget, needed)
        pairs = zip(gradients, (hidden_MD, *weights), strict=True)
        return ratio, [None if g is None or t is None else g.to(t.dtype) for g, t in pairs]

    return with_gradient(compute, hidden_MD, head.weight_VD, head.bias_V)


def _softcapped_gradients(
    hidden_MD: Tensor, head: LinearHead, spectrum: GramSpectrum, budget: int, needed: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of hidden states, weight and bias that are needed, float32 or wider."""
    if not any(needed):
        return None, None, None
    dtype = hidden_MD.dtype
    grad_hidden_MD = torch.zeros_like(hidden_MD) if needed[0] else None
    grad_weight_VD = torch.empty_like(head.weight_VD, dtype=dtype) if needed[1] else None
    grad_bias_V = hidden_MD.new_empty(head.vocabulary) if needed[2] else None
    assert head.softcap is not None
    for columns, weight_vD, logits_Mv in _pieces(hidden_MD, head, budget):
        right_vk = logits_Mv.T @ spectrum.vectors_nk * spectrum.inverse_k  # V_k / ‖Z‖
        slope_Mv = (logits_Mv / head.softcap).square_().neg_().add_(1.0).mul_(head.logit_scale)
        gradient_Mv = logits_Mv.mul_(spectrum.pull).addmm_(spectrum.vectors_nk, right_vk.T, alpha=-1.0).mul_(slope_Mv)
        if grad_hidden_MD is not None:
            grad_hidden_MD.addmm_(gradient_Mv, weight_vD)
        if grad_weight_VD is not None:
            torch.mm(gradient_Mv.T, hidden_MD, out=grad_weight_VD[columns])
        if grad_bias_V is not None:
            torch.sum(gradient_Mv, dim=0, out=grad_bias_V[columns])
    return grad_hidden_MD, grad_weight_VD, grad_bias_V


def _pieces(hidden_MD: Tensor, head: LinearHead, budget: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the columns of each piece of the vocabulary, their weights, and their logits (float32 or wider)."""
    assert head.softcap is not None
    width = max(budget // max(len(hidden_MD) * 5 * hidden_MD.element_size(), 1), 1)
    for start in range(0, head.vocabulary, width):
        columns = slice(start, start + width)
        bias_v = None if head.bias_V is None else head.bias_V[columns]
        piece = LinearHead(head.weight_VD[columns].to(hidden_MD.dtype), bias_v, head.logit_scale)
        logits_Mv = piece.affine(hidden_MD, 1.0 / head.softcap, hidden_MD.new_empty(len(hidden_MD), piece.vocabulary))
        yield columns, piece.weight_VD, logits_Mv.tanh_().mul_(head.softcap)
