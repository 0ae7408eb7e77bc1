r"""The token terms of a few rows of logits and their closed-form gradient, in the memory the logits came in.

With z the student's logits of one token, y its label, T the temperature, and p at temperature 1 or T:

.. math:: \ell   &= \log \textstyle\sum_v e^{z_v} - z_y + \lambda_1 T^2 \, \mathrm{KL}(p^T_P \,\|\, p^T_F)
                    + \lambda_2 \textstyle\sum_{v \in \mathrm{top}K} q_v \log q_v \\
          \partial \ell / \partial z_v &= p_v - [v = y] + \lambda_1 T (p^T_{F,v} - p^T_{P,v})
                    + \lambda_2 q_v (\log q_v - \textstyle\sum_u q_u \log q_u)

Shapes: m tokens of a tile, V vocabulary, K candidates, 1 a kept dimension.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from balora.losses.blocked_topk import topk_of_rows
from balora.losses.divergence import diverge_from_memory_, diverge_from_scores_
from balora.losses.topk_teacher import TopKTeacher


@dataclass(frozen=True)
class TokenTerms:
    """Which terms, how strong. A weight of 0 is a term that is not computed."""

    consistency: float = 0.0
    diversity: float = 0.0
    temperature: float = 2.0
    top_k: int = 20
    softcap: float | None = None

    @property
    def score_scale(self) -> float:
        """What the head's affine map is to be multiplied with before :func:`token_terms_` sees it."""
        if self.softcap is not None:
            return 1.0 / self.softcap
        return 1.0 / self.temperature if self.consistency else 1.0


def token_terms_(
    scores_mV: Tensor,
    teacher: Tensor | TopKTeacher | None,
    labels_m: Tensor,
    terms: TokenTerms,
    values_3m: Tensor,
    gradient: bool,
) -> None:
    """Fill in the three values of each token, and replace the scores by the gradient with respect to the logits.

    The gradient is that of the unnormalised sum, task + weighted terms. It takes the place of the teacher's scores
    where there are such, the student's otherwise; whatever the other one held is lost.

    Args:
        scores_mV: The student's affine outputs times :attr:`TokenTerms.score_scale`, float32 or wider.
        teacher: The teacher's, likewise, or what is remembered of it; None exactly where the consistency weight is 0.
        labels_m: Targets, in [0, V).
        terms: Weights and settings.
        values_3m: Receives cross-entropy, T² KL and negative entropy, unweighted. A row of weight 0 is left alone.
        gradient: Whether the gradient is wanted.
    """
    temperature = terms.temperature if teacher is not None else 1.0
    slope_mV = None
    if terms.softcap is not None:
        slope_mV = _softcap_(scores_mV, terms.softcap / temperature, gradient)
        if isinstance(teacher, Tensor):
            _softcap_(teacher, terms.softcap / temperature, False)

    top = topk_of_rows(scores_mV, min(terms.top_k, scores_mV.shape[1])) if terms.diversity else None
    scores_mV.sub_(scores_mV.amax(dim=-1, keepdim=True) if top is None else top[0][:, :1])
    label_m1 = labels_m[:, None]
    target_m = scores_mV.gather(1, label_m1).squeeze(1) * temperature

    if teacher is None:
        total_m1 = scores_mV.exp_().sum(dim=-1, keepdim=True)
        gradient_mV = scores_mV.div_(total_m1) if gradient else scores_mV
    else:
        pull = terms.consistency * temperature if gradient else None
        if isinstance(teacher, Tensor):
            divergence_m1, total_m1, gradient_mV = diverge_from_scores_(scores_mV, teacher, temperature, pull)
        else:
            divergence_m1, total_m1, gradient_mV = diverge_from_memory_(scores_mV, teacher, temperature, pull)
        values_3m[1] = temperature**2 * divergence_m1.squeeze(1)
    values_3m[0] = total_m1.squeeze(1).log() - target_m
    if top is not None:
        values_3m[2], slope_mK = _negative_entropy(top[0] * temperature)

    if not gradient:
        return
    gradient_mV.scatter_add_(1, label_m1, torch.full_like(total_m1, -1.0))
    if top is not None:
        gradient_mV.scatter_add_(1, top[1], terms.diversity * slope_mK)
    if slope_mV is not None:
        gradient_mV.mul_(slope_mV)


def _negative_entropy(top_mK: Tensor) -> tuple[Tensor, Tensor]:
    """Return Σ q log q over each row's candidates, and its gradient with respect to their logits."""
    log_q_mK = top_mK.log_softmax(dim=-1)
    q_mK = log_q_mK.exp()
    log_q_mK = log_q_mK.masked_fill(q_mK == 0, 0.0)  # 0 · log 0 is 0
    value_m1 = (q_mK * log_q_mK).sum(dim=-1, keepdim=True)
    return value_m1.squeeze(1), q_mK * (log_q_mK - value_m1)


def _softcap_(scores_mV: Tensor, cap: float, slope: bool) -> Tensor | None:
    """Turn x / c into ``cap`` · tanh(x / c), and return 1 - tanh², the slope of c · tanh(x / c), where it is wanted."""
    bent_mV = scores_mV.tanh_()
    slope_mV = bent_mV.square().neg_().add_(1.0) if slope else None
    bent_mV.mul_(cap)
    return slope_mV
