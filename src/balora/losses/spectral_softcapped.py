r"""The spectral term of soft-capped logits, in two passes over pieces of the vocabulary.

Soft-capping is not linear, so the spectrum cannot be computed from the hidden states alone. The first pass sums the Gram
matrix :math:`Z Z^\top` (M × M), whose eigenvalues are the squared singular values. The second pass computes each piece of
the gradient with respect to the logits and takes it back through the cap and the head:

.. math:: \frac{\partial L}{\partial Z} = -\frac{U_k V_k^\top}{\lVert Z \rVert_F}
          + \frac{\sum_{i \le k} \sigma_i}{\lVert Z \rVert_F^3} Z, \qquad V_k = Z^\top U_k \Sigma_k^{-1}

Shapes: M valid tokens, d hidden size (D as a suffix), V vocabulary, v tokens of a piece of it, k spectral rank.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from balora.losses.spectral_gram import GramSpectrum
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import widened
from balora.regularizers.precomputed import with_gradient

_BUDGET = 64 * 2**20


def softcapped_spectral_ratio(
    hidden_MD: Tensor, head: LinearHead, rank: int, memory_budget: int | None = None
) -> Tensor:
    r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert Z \rVert_F` of the logits of a soft-capped head.

    The result is exact, a scalar in float32 or wider, differentiable once; with M = 0 it is 0. Memory is M × M and never
    M × V; time is twice that of the head. For a linear head :class:`balora.losses.SpectralBasis` is faster.

    Args:
        hidden_MD: Hidden states of the valid tokens, any floating dtype.
        head: Weight, bias, scale and cap, in the hidden states' dtype; gets gradients if it requires them.
        rank: k, at least 1.
        memory_budget: Bytes for a piece's buffers; default 64 MiB.
    """
    budget = memory_budget or _BUDGET

    def compute(
        needed: tuple[bool, ...], hidden_MD: Tensor, *weights: Tensor | None
    ) -> tuple[Tensor, list[Tensor | None]]:
        wide_MD = widened(hidden_MD)
        gram_MM = wide_MD.new_zeros(len(wide_MD), len(wide_MD), dtype=torch.float64)
        for _, _, logits_Mv in _pieces(wide_MD, head, budget):
            gram_MM.addmm_(logits_Mv.double(), logits_Mv.double().T)
        ratio, spectrum = GramSpectrum.of(gram_MM, rank, wide_MD.dtype)
        gradients = _gradients(wide_MD, head, spectrum, budget, needed)
        pairs = zip(gradients, (hidden_MD, *weights), strict=True)
        return ratio, [None if g is None or t is None else g.to(t.dtype) for g, t in pairs]

    return with_gradient("The spectral term", compute, hidden_MD, head.weight_VD, head.bias_V)


def _gradients(
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
