r"""The token terms of a few rows of logits and their closed-form gradient, in the memory of the logits.

With z the student's logits of one token, y its label, T the temperature, and p at temperature 1 or T:

.. math:: \ell   &= w (\log \textstyle\sum_v e^{z_v} - z_y) + \lambda_1 T^2 \, \mathrm{KL}(p^T_P \,\|\, p^T_F)
                    + \lambda_2 \textstyle\sum_{v \in \mathrm{top}K} q_v \log q_v \\
          \partial \ell / \partial z_v &= w (p_v - [v = y]) + \lambda_1 T (p^T_{F,v} - p^T_{P,v})
                    + \lambda_2 q_v (\log q_v - \textstyle\sum_u q_u \log q_u)

The weight w of the task is a constant: 1, the probability :math:`p_y` (``dft``) or 0 (``none``). With
``consistency_tokens: non_target`` both :math:`p^T` are without y, renormalised; the term's gradient is then 0 at y.

A pass over V costs as much as ten columns of the head's matrix product, so the code saves passes. At T = 2, the paper's
value, one pass of exponentials serves both temperatures: the exponentials at 1 are the squares of those at 2.
Shapes: m tokens of a tile, V vocabulary, K candidates or tokens of a top-k teacher, 1 a kept dimension.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from balora.losses.loss_parts import LossTerms
from balora.losses.topk_teacher import TopKTeacher, topk_of_rows


def score_scale(terms: LossTerms, softcap: float | None) -> float:
    """Return the factor on the head's affine outputs that makes the scores :func:`token_terms_` takes."""
    if softcap is not None:
        return 1.0 / softcap
    return 1.0 / terms.temperature if terms.consistency else 1.0


def token_terms_(
    scores_mV: Tensor,
    teacher: Tensor | TopKTeacher | None,
    labels_m: Tensor,
    terms: LossTerms,
    softcap: float | None,
    values_3m: Tensor,
    gradient: bool,
) -> None:
    """Compute the three terms of each token, and overwrite the scores with the gradient with respect to the logits.

    Scores are affine outputs of the head times :func:`score_scale`, in float32 or wider. ``teacher`` is the teacher's
    scores, a top-k teacher or, exactly if the consistency weight is 0, None. ``values_3m`` receives cross-entropy, T² KL
    and negative entropy, unweighted; the row of a term of weight 0 is not written.

    The gradient is that of the sum over tokens of task plus weighted terms. It is written over the teacher's scores if
    there are any, otherwise over the student's. The other tensor of scores is overwritten with scratch values.
    """
    temperature = terms.temperature if teacher is not None else 1.0
    slope_mV = None
    if softcap is not None:
        slope_mV = _softcap_(scores_mV, softcap / temperature, gradient)
        if isinstance(teacher, Tensor):
            _softcap_(teacher, softcap / temperature, False)

    top = topk_of_rows(scores_mV, min(terms.top_k, scores_mV.shape[1])) if terms.diversity else None
    scores_mV.sub_(scores_mV.amax(dim=-1, keepdim=True) if top is None else top[0][:, :1])
    label_m1 = labels_m[:, None]
    target_m = scores_mV.gather(1, label_m1).squeeze(1) * temperature

    def weight_of(total_m1: Tensor) -> Tensor:
        if terms.task_loss == "dft":
            return target_m[:, None].exp() / total_m1
        return torch.full_like(total_m1, 1.0 if terms.task_loss == "nll" else 0.0)

    if teacher is None:
        total_m1 = scores_mV.exp_().sum(dim=-1, keepdim=True)
        gradient_mV = scores_mV.mul_(weight_of(total_m1) / total_m1) if gradient else scores_mV
    else:
        factor = terms.consistency * temperature if gradient else None
        left_out_m1 = label_m1 if terms.consistency_tokens == "non_target" else None
        options = (temperature, factor, weight_of, left_out_m1)
        if isinstance(teacher, Tensor):
            found = _diverge_from_scores_(scores_mV, teacher, *options)
        else:
            found = _diverge_from_topk_(scores_mV, teacher, *options)
        divergence_m1, total_m1, gradient_mV = found
        values_3m[1] = temperature**2 * divergence_m1.squeeze(1)
    weight_m1 = weight_of(total_m1)
    values_3m[0] = weight_m1.squeeze(1) * (total_m1.squeeze(1).log() - target_m)
    if top is not None:
        values_3m[2], slope_mK = _negative_entropy(top[0] * temperature)

    if not gradient:
        return
    gradient_mV.scatter_add_(1, label_m1, -weight_m1)
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
    """Turn x / c into ``cap`` · tanh(x / c); with ``slope`` return 1 - tanh², the derivative of c · tanh(x / c)."""
    capped_mV = scores_mV.tanh_()
    slope_mV = capped_mV.square().neg_().add_(1.0) if slope else None
    capped_mV.mul_(cap)
    return slope_mV


# Both functions below compute the divergence of the student from its teacher, in place. They take the student's logits
# over T, with each row's maximum at 0. They return the KL divergence, the normaliser of the student's softmax p at
# temperature 1, and the tensor that then holds w p + factor · ∂KL/∂(z/T). ``factor`` is None if no gradient is needed,
# ``weight_of`` gives w from the normaliser, and ``left_out_m1`` is the token of each row that the divergence is without.
_WeightOf = Callable[[Tensor], Tensor]


def _diverge_from_scores_(
    scores_mV: Tensor,
    teacher_mV: Tensor,
    temperature: float,
    factor: float | None,
    weight_of: _WeightOf,
    left_out_m1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Diverge from the teacher's logits over T; the gradient is written over them."""
    tiny = torch.finfo(scores_mV.dtype).tiny
    teacher_mV.sub_(teacher_mV.amax(dim=-1, keepdim=True))
    teacher_exp_mV = teacher_mV.exp()
    if left_out_m1 is not None:
        teacher_exp_mV.scatter_(1, left_out_m1, 0.0)
    teacher_total_m1 = _positive(teacher_exp_mV.sum(dim=-1, keepdim=True), left_out_m1, tiny)
    # KL = Σ p_P (log p_P - log p_F), with the two normalisers taken out of the sum.
    distance_m1 = teacher_mV.sub_(scores_mV).mul_(teacher_exp_mV).sum(dim=-1, keepdim=True) / teacher_total_m1

    softened_mV, sharp_mV = _exponentials_(scores_mV, temperature, teacher_mV)  # teacher_mV is free by now
    total_m1 = sharp_mV.sum(dim=-1, keepdim=True)
    if left_out_m1 is not None:
        softened_mV.scatter_(1, left_out_m1, 0.0)
    softened_total_m1 = _positive(softened_mV.sum(dim=-1, keepdim=True), left_out_m1, tiny)
    divergence_m1 = distance_m1 - teacher_total_m1.log() + softened_total_m1.log()
    if factor is not None:
        sharp_mV.mul_(weight_of(total_m1) / total_m1)
        sharp_mV.add_(softened_mV.mul_(factor / softened_total_m1))
        sharp_mV.sub_(teacher_exp_mV.mul_(factor / teacher_total_m1))
    return divergence_m1, total_m1, sharp_mV


def _diverge_from_topk_(
    scores_mV: Tensor,
    teacher: TopKTeacher,
    temperature: float,
    factor: float | None,
    weight_of: _WeightOf,
    left_out_m1: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Diverge from the K tokens and the tail of a top-k teacher; the gradient is written over the scores.

    With p the teacher's and f the student's softened probabilities, a bar for their tails and
    :math:`r = \bar p / \bar f`, the gradient with respect to z / T is :math:`(1 - r) f_v` for tokens of the tail and
    :math:`f_v - p_v` for the K.
    """
    tokens_mK, tiny = teacher.tokens_MK.long(), torch.finfo(scores_mV.dtype).tiny
    log_p_mK, log_p_tail_m1 = (t.to(scores_mV.dtype) for t in (teacher.log_probs_MK, teacher.log_tail_M[:, None]))
    scores_mK = scores_mV.gather(1, tokens_mK)
    softened_mV, sharp_mV = _exponentials_(scores_mV, temperature, torch.empty_like(scores_mV))
    total_m1 = sharp_mV.sum(dim=-1, keepdim=True)
    if left_out_m1 is not None:  # it is not among the K either
        softened_mV.scatter_(1, left_out_m1, 0.0)
    exp_mK = softened_mV.gather(1, tokens_mK)
    softened_mV.scatter_(1, tokens_mK, 0.0)  # sum the tail alone: total minus the K would lose its digits
    tail_exp_m1 = softened_mV.sum(dim=-1, keepdim=True).clamp(min=tiny)
    softened_total_m1 = tail_exp_m1 + exp_mK.sum(dim=-1, keepdim=True)

    # Below, a teacher of NaN must give NaN, so the tests are not `> 0`.
    p_mK, p_tail_m1, log_total_m1 = log_p_mK.exp(), log_p_tail_m1.exp(), softened_total_m1.log()
    terms_mK = torch.where(p_mK == 0, 0.0, p_mK * (log_p_mK - scores_mK + log_total_m1))
    tail_m1 = torch.where(p_tail_m1 == 0, 0.0, p_tail_m1 * (log_p_tail_m1 - tail_exp_m1.log() + log_total_m1))
    divergence_m1 = terms_mK.sum(dim=-1, keepdim=True) + tail_m1
    if factor is not None:
        mass_m1 = p_mK.sum(dim=-1, keepdim=True) + p_tail_m1  # 1, up to the rounding of the cached log-probabilities
        softened_mV.mul_(factor * (mass_m1 / softened_total_m1 - p_tail_m1 / tail_exp_m1))
        softened_mV.scatter_(1, tokens_mK, factor * (mass_m1 * exp_mK / softened_total_m1 - p_mK))
        softened_mV.add_(sharp_mV.mul_(weight_of(total_m1) / total_m1))
    return divergence_m1, total_m1, softened_mV


def _positive(total_m1: Tensor, left_out_m1: Tensor | None, tiny: float) -> Tensor:
    """Return a normaliser whose logarithm is finite: without a token that has all the probability, nothing may be left."""
    return total_m1 if left_out_m1 is None else total_m1.clamp(min=tiny)


def _exponentials_(scores_mV: Tensor, temperature: float, free_mV: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(z / T), written over the scores, and exp(z), written over ``free_mV``."""
    if temperature == 2.0:
        softened_mV = scores_mV.exp_()
        return softened_mV, torch.mul(softened_mV, softened_mV, out=free_mV)
    torch.mul(scores_mV, temperature, out=free_mV).exp_()
    return scores_mV.exp_(), free_mV
