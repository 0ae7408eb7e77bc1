"""Consistency: keep the fine-tuned model near the pre-trained one (eq. 4 and 9; for regression appendix D.2).

The teacher is a constant: it gets no gradient. Training uses :mod:`balora.losses`, which the tests compare with these.
Shapes: ``...`` any leading dimensions (one row each), C classes or vocabulary, K tokens known of the teacher.
"""

import math

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.regularizers.checks import require_floating, require_same_shape, widened


def consistency(student_logits: Tensor, teacher_logits: Tensor, temperature: float = 2.0) -> Tensor:
    r"""KL divergence of the softened student from the softened teacher, times the squared temperature; mean over rows.

    .. math:: L_{CR} = \frac{T^2}{N} \sum_n \mathrm{KL}\left(
              \mathrm{softmax}(z_{P,n} / T) \,\|\, \mathrm{softmax}(z_{F,n} / T) \right)

    A class that both sides rule out with a logit of -inf adds 0. With a single class the divergence is always 0, so
    regression uses :func:`consistency_mse`.

    Args:
        student_logits: Scores of the model being trained, (..., C), any floating dtype.
        teacher_logits: Scores of the pre-trained model, of the same shape.
        temperature: T, above 0. The factor T² keeps the gradient's size independent of it.

    Returns:
        Scalar in nats, 0 or more (up to rounding); float32 or wider. It is inf if the student rules out a class that
        the teacher allows. With no rows it is 0, still on the graph.

    Raises:
        BALoraError: The shapes differ, a tensor is not floating point or has no class dimension, or ``temperature``
            is not positive.

    Example:
        >>> even = torch.zeros(2, 4)
        >>> float(consistency(even, even))
        0.0

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 4 and 9; Hinton et al., 2015.
    """
    require_same_shape(student_logits, teacher_logits, "logits")
    require_floating(teacher_logits, "The teacher's logits")
    _require_logits(student_logits, temperature)

    log_student = (widened(student_logits) / temperature).log_softmax(dim=-1)
    log_teacher = (widened(teacher_logits.detach()) / temperature).log_softmax(dim=-1)
    return temperature**2 * _divergence(log_teacher, log_student)


def consistency_topk(
    student_logits: Tensor,
    teacher_tokens: Tensor,
    teacher_log_probs: Tensor,
    teacher_log_tail: Tensor,
    temperature: float = 2.0,
) -> Tensor:
    r"""Consistency with a teacher of which only the K likeliest tokens are known; all others count as one class, the tail.

    .. math:: L = \frac{T^2}{N} \sum_n \Big( \sum_{v \in K_n} p_{nv} \log \frac{p_{nv}}{f_{nv}}
              + \bar p_n \log \frac{\bar p_n}{\bar f_n} \Big), \qquad
              \bar p_n = \sum_{v \notin K_n} p_{nv}, \quad \bar f_n = \sum_{v \notin K_n} f_{nv}

    with p the teacher's and f the student's softened probabilities. The value is never above :func:`consistency`. The
    difference is :math:`T^2 \bar p_n` times the divergence within the tail.

    Args:
        student_logits: Scores of the model being trained, (..., C), any floating dtype.
        teacher_tokens: The K classes of each row, (..., K), integers, each at most once.
        teacher_log_probs: Their log-probabilities under the pre-trained model at this temperature, (..., K).
        teacher_log_tail: Logarithm of the probability of all other classes, (...); -inf if that is 0.
        temperature: T, above 0; the log-probabilities must have been taken at the same one.

    Returns:
        Scalar in nats, 0 or more (up to rounding); float32 or wider. With no rows it is 0, still on the graph.

    Raises:
        BALoraError: The shapes do not match, or ``temperature`` is not positive.

    Example:
        >>> even, log = torch.zeros(1, 4), torch.log(torch.tensor([[0.5, 0.25, 0.25]]))
        >>> tokens = torch.tensor([[2, 0]])  # ½ and ¼; the tail is ¼, and the student's ½
        >>> round(float(consistency_topk(even, tokens, log[:, :2], log[:, 2], temperature=1.0)), 4)  # ¼ log 2
        0.1733
    """
    _require_logits(student_logits, temperature)
    require_floating(teacher_log_probs, "The teacher's log-probabilities")
    rows, shapes = student_logits.shape[:-1], (teacher_tokens.shape, teacher_log_probs.shape, teacher_log_tail.shape)
    if shapes != ((*rows, teacher_tokens.shape[-1]), (*rows, teacher_tokens.shape[-1]), rows):
        raise BALoraError(
            "The teacher's tokens and log-probabilities must be K per row of logits, and its tail one; with logits of "
            f"{tuple(student_logits.shape)} the three shapes are {', '.join(str(tuple(shape)) for shape in shapes)}."
        )
    tokens = teacher_tokens.long()
    log_student = (widened(student_logits) / temperature).log_softmax(dim=-1)
    log_tail = log_student.scatter(-1, tokens, -torch.inf).logsumexp(dim=-1, keepdim=True)
    log_student = torch.cat([log_student.gather(-1, tokens), log_tail], dim=-1)
    log_teacher = widened(torch.cat([teacher_log_probs, teacher_log_tail[..., None]], dim=-1).detach())
    return temperature**2 * _divergence(log_teacher, log_student)


def consistency_mse(student_outputs: Tensor, teacher_outputs: Tensor) -> Tensor:
    r"""Mean squared distance between the student's and the teacher's outputs, for regression.

    .. math:: L_{CR} = \frac{1}{N D} \sum_{n, j} (z_{F,nj} - z_{P,nj})^2

    Args:
        student_outputs: Outputs of the model being trained, any shape, any floating dtype.
        teacher_outputs: Outputs of the pre-trained model, of the same shape.

    Returns:
        Scalar, 0 or more, in squared units of the output; float32 or wider. With no entries it is 0, still on the graph.

    Raises:
        BALoraError: The shapes differ or a tensor is not floating point.

    Example:
        >>> float(consistency_mse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])))
        2.0

    Reference: Chang et al., BA-LoRA, ICLR 2026, appendix D.2.
    """
    require_same_shape(student_outputs, teacher_outputs, "outputs")
    require_floating(student_outputs, "The student's output")
    require_floating(teacher_outputs, "The teacher's output")
    distance = widened(student_outputs) - widened(teacher_outputs.detach())
    return distance.square().sum() / max(distance.numel(), 1)


def _divergence(log_teacher: Tensor, log_student: Tensor) -> Tensor:
    """Return the KL divergence of the student from the teacher, mean over rows."""
    teacher = log_teacher.exp()
    # 0 · (-inf - -inf) is NaN, and its limit is 0. A teacher of NaN must stay NaN, so the test is not `teacher > 0`.
    terms = torch.where(teacher == 0, 0.0, teacher * (log_teacher - log_student))
    return terms.sum() / max(terms.shape[:-1].numel(), 1)


def _require_logits(student_logits: Tensor, temperature: float) -> None:
    require_floating(student_logits, "The student's logits")
    if student_logits.dim() == 0:
        raise BALoraError("Consistency needs logits with a class dimension, and these are a single number.")
    if not (math.isfinite(temperature) and temperature > 0):
        raise BALoraError(f"The temperature must be a positive number, and it is {temperature}.")
