r"""The spectral term of the logits, computed without the logits (eq. 11, method.md, departure 9).

For a linear head :math:`Z = H W^\top` and any R with :math:`R^\top R = W^\top W`, the matrix :math:`A = H R^\top` has the
singular values and the Frobenius norm of Z, with d columns in place of V. A bias is one more column of W, with a column
of ones in H. A factor on the logits cancels in the ratio.
Shapes: M valid tokens, d hidden size (D as a suffix; E with the bias's column), V vocabulary, k spectral rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.losses.collectives import gather_rows, row_counts, world_size
from balora.losses.spectral_gram import global_frobenius_ratio, softcapped_spectral_ratio
from balora.losses.truncated_svd import Triplets, leading_triplets
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import refuse_second_derivative, require_matrix, require_rank, widened
from balora.regularizers.spectral import with_gradient

_GRAM_BYTES = 64 * 2**20


@dataclass(frozen=True)
class SpectralBasis:
    """Factor R of a frozen linear head, made once and used for every batch.

    Attributes:
        factor_EE: R, float32 or wider, E × E with E = d, or d + 1 with a bias (V × E where V is smaller).
        has_bias: True if the last column belongs to a bias.

    Example:
        >>> head = torch.eye(3)
        >>> round(float(SpectralBasis.from_head(head).ratio(torch.diag(torch.tensor([4.0, 3.0, 0.0])), rank=1)), 4)
        -0.8
    """

    factor_EE: Tensor
    has_bias: bool = False

    @classmethod
    def from_head(cls, head_VD: Tensor, bias_V: Tensor | None = None) -> SpectralBasis:
        """Factor a head, in float64 and in pieces of the vocabulary.

        The factor is the Cholesky factor of WᵀW or, if that fails, its square root by eigenvectors. Compared with the R
        of a QR decomposition of W, the singular values differ by less than 1e-7 of the largest, in less than half the
        time.

        Args:
            head_VD: W, any floating dtype; treated as a constant.
            bias_V: b; None for none.

        Returns:
            The basis, on the head's device.

        Raises:
            BALoraError: Weight or bias is not finite (a bias of -inf has no spectrum).
        """
        require_matrix(head_VD, "The head", "vocabulary × hidden size")
        factor = _factor(head_VD.detach(), None if bias_V is None else bias_V.detach())
        if not torch.isfinite(factor).all():
            raise BALoraError(
                "The spectral term needs a head of finite numbers, and this one has others; set its weight to 0."
            )
        return cls(factor.to(torch.promote_types(head_VD.dtype, torch.float32)), bias_V is not None)

    @property
    def hidden_size(self) -> int:
        """Size of the hidden states, d."""
        return self.factor_EE.shape[1] - int(self.has_bias)

    def ratio(self, hidden_MD: Tensor, rank: int, across_processes: bool = False) -> Tensor:
        r"""Return :math:`-\sum_{i \le k} \sigma_i / \lVert Z \rVert_F` of the logits of these hidden states.

        Args:
            hidden_MD: Hidden states of the valid tokens, any floating dtype. An entry that is not finite gives NaN.
            rank: k, at least 1; a larger one than the number of singular values means all.
            across_processes: Let Z have the rows of all processes. Each process must then call with its own rows.

        Returns:
            Scalar in [-√k, 0), float32 or wider, differentiable once. With M = 0 it is 0, still on the graph.

        Raises:
            BALoraError: The hidden size is not the head's, or ``rank`` < 1.
        """
        require_matrix(hidden_MD, "The hidden states", "tokens × hidden size")
        if hidden_MD.shape[1] != self.hidden_size:
            raise BALoraError(
                f"The spectral basis is of a head of hidden size {self.hidden_size}, and the hidden states have "
                f"{hidden_MD.shape[1]}."
            )
        require_rank(rank)
        hidden_ME = _with_ones(widened(hidden_MD)) if self.has_bias else widened(hidden_MD)
        matrix_ME = hidden_ME @ self.factor_EE.to(hidden_ME.dtype).T
        if across_processes and world_size() > 1:
            if sum(row_counts(matrix_ME)) >= matrix_ME.shape[1]:
                return global_frobenius_ratio(matrix_ME, rank)
            matrix_ME = gather_rows(matrix_ME)  # fewer rows than columns: smaller than their Gram matrix
        if matrix_ME.numel() == 0:
            return matrix_ME.sum()
        return with_gradient(_frobenius_ratio, matrix_ME, rank)


def logit_spectral_ratio(
    hidden_MD: Tensor,
    head: LinearHead,
    rank: int,
    basis: SpectralBasis | None = None,
    memory_budget: int | None = None,
    across_processes: bool = False,
) -> Tensor:
    """Return the spectral term of a head's logits, by the cheapest exact method for this head.

    A frozen linear head uses its basis, made here if none is given. A trained linear head does the same and gets its own
    gradient. A soft-capped head is processed in pieces of the vocabulary. With ``across_processes`` and a trained or
    soft-capped head, every process computes the logits of all processes.

    Raises:
        BALoraError: A basis is given for a head that is trained, soft-capped or has another bias.
    """
    require_rank(rank)
    if basis is not None:
        _require_fit(basis, head)
        return basis.ratio(hidden_MD, rank, across_processes)
    if head.softcap is None and not head.trainable:
        return SpectralBasis.from_head(head.weight_VD, head.bias_V).ratio(hidden_MD, rank, across_processes)
    if across_processes:
        hidden_MD = gather_rows(hidden_MD)
    if head.softcap is not None:
        return softcapped_spectral_ratio(hidden_MD, head, rank, memory_budget)
    hidden_ME, weight_VE = widened(hidden_MD), head.weight_VD
    if head.bias_V is not None:
        hidden_ME = _with_ones(hidden_ME)
        weight_VE = torch.cat([weight_VE, head.bias_V[:, None].to(weight_VE.dtype)], dim=1)
    if not torch.is_grad_enabled():
        hidden_ME, weight_VE = hidden_ME.detach(), weight_VE.detach()
    ratio: Tensor = _TrainedRatio.apply(hidden_ME, weight_VE, rank)
    return ratio


def _frobenius_ratio(needed: tuple[bool, ...], matrix_ME: Tensor, rank: int) -> tuple[Tensor, list[Tensor | None]]:
    ratio, gradient_ME, _ = _ratio_and_gradient(matrix_ME, rank)
    return ratio, [gradient_ME]


class _TrainedRatio(torch.autograd.Function):
    r"""Ratio of A = H Rᵀ with R made from W, with the gradients of H and of W.

    :math:`\partial L / \partial W = (\partial L / \partial Z)^\top H`. With :math:`V = Z^\top U \Sigma^{-1}` and
    :math:`Z = H W^\top` that is W C, where
    :math:`C = \frac{\sum \sigma}{\lVert Z \rVert^3} H^\top H - \frac{1}{\lVert Z \rVert} H^\top U \Sigma^{-1} U^\top H`
    is d × d. The product W C is computed in the backward, so that no V × d gradient is kept until then.
    """

    @staticmethod
    def forward(ctx: Any, hidden_ME: Tensor, weight_VE: Tensor, rank: int) -> Tensor:
        if hidden_ME.numel() == 0:
            ctx.save_for_backward(hidden_ME, weight_VE, hidden_ME.new_zeros(2 * weight_VE.shape[1:]))
            return hidden_ME.sum()
        factor_EE = _factor(weight_VE).to(hidden_ME.dtype)
        ratio, gradient_ME, (norm, triplets) = _ratio_and_gradient(hidden_ME @ factor_EE.T, rank)
        wide_ME = hidden_ME.double()
        projected_Ek = wide_ME.T @ triplets.left_Mk
        inverse_k = torch.where(triplets.left_Mk.any(dim=0), 1.0 / triplets.values_k, 0.0)
        inner_EE = (
            -ratio.double() / norm**2 * (wide_ME.T @ wide_ME) - (projected_Ek * inverse_k) @ projected_Ek.T / norm
        )
        ctx.save_for_backward(gradient_ME @ factor_EE, weight_VE, inner_EE.to(hidden_ME.dtype))
        return ratio

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        refuse_second_derivative("The spectral term")
        gradient_ME, weight_VE, inner_EE = ctx.saved_tensors
        for_hidden = upstream * gradient_ME if ctx.needs_input_grad[0] else None
        for_weight = None
        if ctx.needs_input_grad[1]:
            for_weight = (weight_VE.to(inner_EE.dtype) @ (upstream * inner_EE)).to(weight_VE.dtype)
        return for_hidden, for_weight, None


def _ratio_and_gradient(matrix_ME: Tensor, rank: int) -> tuple[Tensor, Tensor, tuple[Tensor, Triplets]]:
    """Return -Σ σ / ‖A‖, its gradient -U_k V_kᵀ / ‖A‖ + Σ σ / ‖A‖³ · A, and the norm and triplets it is made of."""
    # In float64: over M · d entries a float32 norm is off by 1e-5, more than all other errors.
    norm = torch.linalg.vector_norm(matrix_ME, dtype=torch.float64)
    if not torch.isfinite(norm):  # the SVD would raise, but the trainer handles a diverged step itself
        nan = torch.full_like(matrix_ME, torch.nan)
        return nan.sum(), nan, (norm, Triplets(nan[:, :1].double(), norm.reshape(1), nan[:1].T.double()))
    norm = torch.where(norm > 0, norm, 1.0)
    triplets = leading_triplets(matrix_ME, rank)
    total = triplets.values_k.sum()
    outer_ME = (triplets.left_Mk / norm).to(matrix_ME.dtype) @ triplets.right_Dk.to(matrix_ME.dtype).T
    gradient_ME = (total / norm**3).to(matrix_ME.dtype) * matrix_ME - outer_ME
    return -(total / norm).to(matrix_ME.dtype), gradient_ME, (norm, triplets)


def _factor(weight_VD: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Return R in float64 with Rᵀ R = [W, b]ᵀ [W, b], without a float64 copy of all of W."""
    rows, width = len(weight_VD), weight_VD.shape[1] + int(bias_V is not None)
    step = max(_GRAM_BYTES // (8 * max(width, 1)), width)
    gram_EE = weight_VD.new_zeros(width, width, dtype=torch.float64)
    for start in range(0, rows, step):
        piece = weight_VD[start : start + step].double()
        if bias_V is not None:
            piece = torch.cat([piece, bias_V[start : start + step, None].double()], dim=1)
        if rows <= width:  # W is its own factor already
            return piece
        gram_EE.addmm_(piece.T, piece)
    if not torch.isfinite(gram_EE).all():
        return gram_EE
    lower_EE, failed = torch.linalg.cholesky_ex(gram_EE)
    if not failed:
        return lower_EE.T
    values_E, vectors_EE = torch.linalg.eigh(gram_EE)
    return (vectors_EE * values_E.clamp(min=0.0).sqrt()).T


def _with_ones(hidden_MD: Tensor) -> Tensor:
    return torch.cat([hidden_MD, hidden_MD.new_ones(len(hidden_MD), 1)], dim=1)


def _require_fit(basis: SpectralBasis, head: LinearHead) -> None:
    """Refuse a basis that does not represent this head."""
    if head.softcap is not None:
        raise BALoraError("A spectral basis is for a linear head, and this one is soft-capped; leave the basis out.")
    if head.trainable:
        raise BALoraError("A spectral basis is for a frozen head, and this one is trained; leave the basis out.")
    if (head.bias_V is not None) != basis.has_bias:
        raise BALoraError("The spectral basis is not of this head: only one has a bias; make the basis from this head.")
