"""Divergence of the student from its teacher, and the gradient of cross-entropy and divergence together, in place.

A pass over V costs as much as ten columns of the head's matrix product, so passes are counted: at T = 2, the paper's,
one exponential serves both temperatures, as those at 1 are the squares of those at 2. Both functions take the student's
logits over T with each row's maximum at 0, and return the KL divergence, the normaliser of the student's softmax at
temperature 1, and the tensor that now holds p + pull · ∂KL/∂(z/T), where p is that softmax; ``pull`` is None where no
gradient is wanted.
Shapes: m tokens of a tile, V vocabulary, K kept tokens, 1 a kept dimension.
"""

from __future__ import annotations

import torch
from torch import Tensor

from balora.losses.topk_teacher import TopKTeacher


def diverge_from_scores_(
    scores_mV: Tensor, teacher_mV: Tensor, temperature: float, pull: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Diverge from a teacher's own logits over T; the gradient takes their place."""
    teacher_mV.sub_(teacher_mV.amax(dim=-1, keepdim=True))
    teacher_exp_mV = teacher_mV.exp()
    teacher_total_m1 = teacher_exp_mV.sum(dim=-1, keepdim=True)
    # KL = Σ p_P (log p_P - log p_F), with the two normalisers taken out of the sum.
    distance_m1 = teacher_mV.sub_(scores_mV).mul_(teacher_exp_mV).sum(dim=-1, keepdim=True) / teacher_total_m1

    softened_mV, sharp_mV = _exponentials_(scores_mV, temperature, teacher_mV)  # the teacher's place is free by now
    softened_total_m1, total_m1 = (e.sum(dim=-1, keepdim=True) for e in (softened_mV, sharp_mV))
    divergence_m1 = distance_m1 - teacher_total_m1.log() + softened_total_m1.log()
    if pull is not None:
        sharp_mV.div_(total_m1)
        sharp_mV.add_(softened_mV.mul_(pull / softened_total_m1))
        sharp_mV.sub_(teacher_exp_mV.mul_(pull / teacher_total_m1))
    return divergence_m1, total_m1, sharp_mV


def diverge_from_memory_(
    scores_mV: Tensor, teacher: TopKTeacher, temperature: float, pull: float | None
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Diverge from the K tokens and the tail that are remembered; the gradient takes the scores' place.

    With p and f the two softened distributions, a bar for their tails and :math:`r = \bar p / \bar f`, the gradient
    with respect to z / T is :math:`(1 - r) f_v` on the tail and :math:`f_v - p_v` on the K.
    """
    tokens_mK, tiny = teacher.tokens_MK.long(), torch.finfo(scores_mV.dtype).tiny
    log_p_mK, log_p_tail_m1 = (t.to(scores_mV.dtype) for t in (teacher.log_probs_MK, teacher.log_tail_M[:, None]))
    kept_mK = scores_mV.gather(1, tokens_mK)
    softened_mV, sharp_mV = _exponentials_(scores_mV, temperature, torch.empty_like(scores_mV))
    total_m1 = sharp_mV.sum(dim=-1, keepdim=True)
    kept_exp_mK = softened_mV.gather(1, tokens_mK)
    softened_mV.scatter_(1, tokens_mK, 0.0)  # the tail alone: as a difference from the whole it would lose its digits
    tail_exp_m1 = softened_mV.sum(dim=-1, keepdim=True).clamp(min=tiny)
    softened_total_m1 = tail_exp_m1 + kept_exp_mK.sum(dim=-1, keepdim=True)

    p_mK, p_tail_m1, log_total_m1 = log_p_mK.exp(), log_p_tail_m1.exp(), softened_total_m1.log()
    known_mK = torch.where(p_mK > 0, p_mK * (log_p_mK - kept_mK + log_total_m1), 0.0)
    rest_m1 = torch.where(p_tail_m1 > 0, p_tail_m1 * (log_p_tail_m1 - tail_exp_m1.log() + log_total_m1), 0.0)
    divergence_m1 = known_mK.sum(dim=-1, keepdim=True) + rest_m1
    if pull is not None:
        mass_m1 = p_mK.sum(dim=-1, keepdim=True) + p_tail_m1  # 1, to the rounding of what is remembered
        softened_mV.mul_(pull * (mass_m1 / softened_total_m1 - p_tail_m1 / tail_exp_m1))
        softened_mV.scatter_(1, tokens_mK, pull * (mass_m1 * kept_exp_mK / softened_total_m1 - p_mK))
        softened_mV.add_(sharp_mV.div_(total_m1))
    return divergence_m1, total_m1, softened_mV


def _exponentials_(scores_mV: Tensor, temperature: float, free_mV: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(z / T), in the scores' place, and exp(z), in the free one."""
    if temperature == 2.0:
        softened_mV = scores_mV.exp_()
        return softened_mV, torch.mul(softened_mV, softened_mV, out=free_mV)
    torch.mul(scores_mV, temperature, out=free_mV).exp_()
    return scores_mV.exp_(), free_mV
