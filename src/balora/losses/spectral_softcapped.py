r"""The spectral term of soft-capped logits: two walks over the vocabulary, a piece at a time.

Soft-capping is not linear, so the hidden states alone do not hold the spectrum. The first walk gathers the Gram
matrix :math:`Z Z^\top` (M × M), whose eigenvalues are the squared singular values; the second one makes each piece of
the gradient and takes it back through cap and head at once:

.. math:: \frac{\partial L}{\partial Z} = -\frac{U_k V_k^\top}{\lVert Z \rVert_F}
          + \frac{\sum_{i \le k} \sigma_i}{\lVert Z \rVert_F^3} Z, \qquad V_k = Z^\top U_k \Sigma_k^{-1}

Shapes: M valid tokens, d hidden size (D as a suffix), V vocabulary, v tokens of a piece of it, k spectral rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from balora.losses.spectral_gram import GramSpectrum
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import refuse_second_derivative, widened

_BUDGET = 64 * 2**20


def capped_spectral_ratio(hidden_MD: Tensor, head: LinearHead, rank: int, memory_budget: int | None = None) -> Tensor:
    r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert Z \rVert_F` of the logits of any :class:`LinearHead`.

    Exact and never M × V in memory, but M × M, and twice the cost of the head: where the head is linear, take
    :class:`balora.losses.SpectralBasis`.

    Args:
        hidden_MD: Hidden states of the valid tokens, any floating dtype.
        head: Weight, bias, scale and cap, in the hidden states' dtype; gets gradients where it requires them.
        rank: k, at least 1.
        memory_budget: Bytes for a piece's buffers; default 64 MiB.

    Returns:
        Scalar in [-√k, 0), float32 or wider, differentiable once. With M = 0 it is 0, still on the graph.
    """
    if not torch.is_grad_enabled():
        hidden_MD, head = hidden_MD.detach(), head.detach()
    ratio: Tensor = _CappedRatio.apply(hidden_MD, head.weight_VD, head.bias_V, head, rank, memory_budget or _BUDGET)
    return ratio


class _CappedRatio(torch.autograd.Function):
    """Value and gradients in the forward; the backward only multiplies by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, head: LinearHead, rank: int, budget: int
    ) -> Tensor:
        hidden_MD, dtypes = widened(hidden_MD), [None if t is None else t.dtype for t in (hidden_MD, weight_VD, bias_V)]
        gram_MM = hidden_MD.new_zeros(len(hidden_MD), len(hidden_MD), dtype=torch.float64)
        for _, _, logits_Mv in _walk(hidden_MD, head, budget):
            gram_MM.addmm_(logits_Mv.double(), logits_Mv.double().T)
        ratio, spectrum = GramSpectrum.of(gram_MM, rank, hidden_MD.dtype)
        gradients = _gradients(hidden_MD, head, spectrum, budget, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*(None if g is None else g.to(dtype) for g, dtype in zip(gradients, dtypes, strict=True)))
        return ratio

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("The spectral term")
        return *(None if g is None else upstream * g for g in ctx.saved_tensors), None, None, None


def _gradients(
    hidden_MD: Tensor, head: LinearHead, spectrum: GramSpectrum, budget: int, wanted: tuple[bool, ...]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The second walk: the gradients that are wanted of hidden states, weight and bias, float32 or wider."""
    dtype = hidden_MD.dtype
    grad_hidden_MD = torch.zeros_like(hidden_MD) if wanted[0] else None
    grad_weight_VD = torch.empty_like(head.weight_VD, dtype=dtype) if wanted[1] else None
    grad_bias_V = hidden_MD.new_empty(head.vocabulary) if wanted[2] else None
    if not any(wanted):
        return None, None, None
    assert head.softcap is not None
    for columns, weight_vD, logits_Mv in _walk(hidden_MD, head, budget):
        right_vk = logits_Mv.T @ spectrum.vectors_nk * spectrum.inverse_k  # V_k over the norm
        slope_Mv = (logits_Mv / head.softcap).square_().neg_().add_(1.0).mul_(head.logit_scale)
        gradient_Mv = logits_Mv.mul_(spectrum.pull).addmm_(spectrum.vectors_nk, right_vk.T, alpha=-1.0).mul_(slope_Mv)
        if grad_hidden_MD is not None:
            grad_hidden_MD.addmm_(gradient_Mv, weight_vD)
        if grad_weight_VD is not None:
            torch.mm(gradient_Mv.T, hidden_MD, out=grad_weight_VD[columns])
        if grad_bias_V is not None:
            torch.sum(gradient_Mv, dim=0, out=grad_bias_V[columns])
    return grad_hidden_MD, grad_weight_VD, grad_bias_V


def _walk(hidden_MD: Tensor, head: LinearHead, budget: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield the vocabulary in pieces: which columns, their weights, their capped logits (float32 or wider)."""
    assert head.softcap is not None
    width = max(budget // max(len(hidden_MD) * 5 * hidden_MD.element_size(), 1), 1)
    for start in range(0, head.vocabulary, width):
        columns = slice(start, start + width)
        bias_v = None if head.bias_V is None else head.bias_V[columns]
        piece = LinearHead(head.weight_VD[columns].to(hidden_MD.dtype), bias_v, head.logit_scale)
        logits_Mv = piece.affine(hidden_MD, 1.0 / head.softcap, hidden_MD.new_empty(len(hidden_MD), piece.vocabulary))
        yield columns, piece.weight_VD, logits_Mv.tanh_().mul_(head.softcap)
