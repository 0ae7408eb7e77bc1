"""Diversity: keep the student from collapsing onto few outputs (eq. 5-6 and 10).

These are the plain formulas. Training uses :mod:`balora.losses`, which the tests compare with these.
Shapes: N sequences, D classes or features, M valid tokens, V vocabulary, K candidates.
"""

from torch import Tensor

from balora.errors import BALoraError
from balora.regularizers.checks import require_matrix, widened


def covariance(logits_ND: Tensor) -> Tensor:
    r"""Squared off-diagonal covariances of the batch's outputs, summed, per output.

    .. math:: C = \frac{(Z - \bar Z)^\top (Z - \bar Z)}{N - 1}, \qquad
              L_{DR} = \frac{1}{D} \sum_{i \ne j} C_{ij}^2

    Alone, the term is smallest when all outputs are equal: for two classes with z = (a, -a) it is Var(a)². VICReg, which
    introduced it, adds :func:`variance_hinge`; the paper does not.

    Args:
        logits_ND: The student's outputs (or pooled features), any floating dtype.

    Returns:
        Scalar, 0 or more, in the output's unit to the fourth power; float32 or wider. With N < 2 (no covariance) or
        D = 1 (nothing off the diagonal) it is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: ``logits_ND`` is not two-dimensional or not floating point.

    Example:
        >>> import torch
        >>> float(covariance(torch.tensor([[1.0, 1.0], [-1.0, -1.0]])))  # C is 2 everywhere: (2² + 2²) / 2
        4.0

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 5-6; Bardes et al., VICReg, 2021.
    """
    require_matrix(logits_ND, "The covariance's input", "sequences × classes")
    rows, classes = logits_ND.shape
    if logits_ND.numel() == 0:
        return widened(logits_ND).sum()
    centred_ND = widened(logits_ND)
    centred_ND = centred_ND - centred_ND.mean(dim=0)
    covariance_DD = centred_ND.T @ centred_ND / max(rows - 1, 1)
    off_diagonal_DD = covariance_DD - covariance_DD.diagonal().diag()
    return off_diagonal_DD.square().sum() / classes


def variance_hinge(features_ND: Tensor, epsilon: float = 1e-4) -> Tensor:
    r"""Shortfall of each feature's standard deviation over the batch from 1, mean over features.

    .. math:: \frac{1}{D} \sum_j \max\left(0,\; 1 - \sqrt{\mathrm{Var}_j + \epsilon}\right)

    Args:
        features_ND: Pooled features (or outputs) of the batch, any floating dtype.
        epsilon: Small number that keeps the root differentiable at a variance of 0; default VICReg's.

    Returns:
        Scalar in [0, 1]; float32 or wider. With N < 2 (no variance) it is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: ``features_ND`` is not two-dimensional or not floating point.

    Example:
        >>> import torch
        >>> float(variance_hinge(torch.tensor([[2.0], [-2.0]])))
        0.0

    Reference: Bardes et al., VICReg, ICLR 2022, eq. 1-2.
    """
    require_matrix(features_ND, "The variance hinge's input", "sequences × features")
    features_ND = widened(features_ND)
    if features_ND.shape[0] < 2 or features_ND.shape[1] == 0:
        return (0.0 * features_ND).sum()
    deviation_D = (features_ND.var(dim=0) + epsilon).sqrt()
    return (1.0 - deviation_D).clamp(min=0.0).mean()


def topk_negative_entropy(logits_MV: Tensor, top_k: int = 20) -> Tensor:
    r"""Negative entropy of the K likeliest tokens, renormalised among themselves; mean over tokens.

    .. math:: L_{DR} = \frac{1}{M} \sum_i \sum_{v \in \mathrm{top}K(i)} q_{iv} \log q_{iv}

    Minimising it spreads probability over plausible candidates and leaves the rest of the vocabulary alone.

    Args:
        logits_MV: Student scores of the valid tokens, any floating dtype. Prompt and padding are already gone.
        top_k: Candidates per token, at least 2. Clipped to V.

    Returns:
        Scalar in nats, in [-log K, 0]; float32 or wider. With M = 0 it is 0, still on the graph.

    Raises:
        BALoraError: ``logits_MV`` is not two-dimensional or not floating point, or ``top_k`` < 2.

    Example:
        >>> import torch
        >>> float(topk_negative_entropy(torch.zeros(3, 8), top_k=4))  # uniform over 4: -log 4
        -1.3862943649291992

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 10.
    """
    require_matrix(logits_MV, "The entropy's input", "tokens × vocabulary")
    if top_k < 2:
        raise BALoraError(f"top_k must be at least 2, as one candidate has no entropy, and it is {top_k}.")
    # The choice of the K is not differentiated: only the chosen logits get a gradient.
    chosen_MK = logits_MV.topk(min(top_k, logits_MV.shape[1]), dim=-1).values
    log_q_MK = widened(chosen_MK).log_softmax(dim=-1)
    q_MK = log_q_MK.exp()
    # A candidate of probability 0 adds 0; 0 · log 0 would be NaN.
    terms_MK = q_MK * log_q_MK.masked_fill(q_MK == 0, 0.0)
    return terms_MK.sum() / max(len(logits_MV), 1)
