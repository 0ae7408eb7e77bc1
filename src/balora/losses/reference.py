"""The generation loss as the paper writes it: full logits, plain formulas, autograd.

The tests compare the fused form, :mod:`balora.losses.generation`, with this one.
Shapes: M positions, V vocabulary.
"""

import torch
from torch import Tensor

from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError
from balora.losses.collectives import gather_rows
from balora.losses.loss_parts import (
    IGNORED,
    ConsistencyTokens,
    HiddenStates,
    Logits,
    LossParts,
    LossTerms,
    Outputs,
    TaskLoss,
    Teacher,
    divisor,
)
from balora.losses.topk_teacher import TopKTeacher
from balora.models.lm_head import LinearHead
from balora.regularizers import consistency as consistency_term
from balora.regularizers import consistency_topk, spectral_ratio, topk_negative_entropy
from balora.regularizers.checks import require_matrix, require_same_shape, widened


@deprecated_keywords(remembered_teacher="topk_teacher")
def reference_generation_loss(
    student_logits_MV: Tensor,
    labels_M: Tensor,
    teacher_logits_MV: Tensor | None = None,
    *,
    consistency: float = 0.0,
    diversity: float = 0.0,
    spectral: float = 0.0,
    temperature: float = 2.0,
    top_k: int = 20,
    spectral_rank: int = 10,
    task_loss: TaskLoss = "nll",
    consistency_tokens: ConsistencyTokens = "all",
    num_items: float | Tensor | None = None,
    topk_teacher: TopKTeacher | None = None,
    consistency_mask_M: Tensor | None = None,
    across_processes: bool = False,
) -> LossParts:
    r"""Cross-entropy plus the weighted regularizers of generation, from full logits.

    .. math:: L = \frac{1}{n} \sum_i \left( -\log p_{i, y_i} + \lambda_1 L_{CR,i} + \lambda_2 L_{DR,i} \right)
              + \lambda_3 L_{SVDR}

    The token terms are sums over the valid tokens divided by n. If n is the size of the whole accumulated batch, every
    split into micro-batches gives the same gradient. The spectral term is computed over the valid tokens of this call, or
    of all processes.

    Args:
        student_logits_MV: Logits of the model being trained, any floating dtype, scaled and capped as the model does.
        labels_M: Token that each row is to predict (already shifted); -100 for none.
        teacher_logits_MV: Logits of the pre-trained model, a constant; may be None if ``consistency`` is 0.
        consistency: λ1. With a weight of 0 the term is not computed, and its part is None.
        diversity: λ2.
        spectral: λ3.
        temperature: T of the consistency.
        top_k: K of the diversity.
        spectral_rank: k of the spectral term.
        task_loss: ``nll``, ``dft`` or ``none``, see :func:`balora.losses.generation_loss`.
        consistency_tokens: ``all`` or ``non_target``.
        num_items: n; default the number of valid tokens.
        topk_teacher: Top-k teacher, in place of the teacher's logits.
        consistency_mask_M: True at each position that the consistency is summed over; default all.
        across_processes: Gather the logits of all processes for the spectral term. Every process must then call.

    Returns:
        The parts; float32 or wider. Without a valid token everything is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: The shapes do not match, or ``consistency`` has no teacher.

    Example:
        >>> logits = torch.zeros(2, 4)
        >>> round(float(reference_generation_loss(logits, torch.tensor([1, -100])).loss), 4)  # log 4
        1.3863

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 9-12.
    """
    terms = LossTerms(
        consistency,
        diversity,
        spectral,
        temperature,
        top_k,
        spectral_rank,
        across_processes,
        task_loss,
        consistency_tokens,
    )
    teacher: Teacher | None = topk_teacher
    if teacher is None and teacher_logits_MV is not None:
        teacher = Logits(teacher_logits_MV)
    return reference_loss(Logits(student_logits_MV), labels_M, terms, teacher, num_items, consistency_mask_M)


def reference_loss(
    student: Outputs,
    labels_M: Tensor,
    terms: LossTerms,
    teacher: Teacher | None = None,
    num_items: float | Tensor | None = None,
    consistency_mask_M: Tensor | None = None,
) -> LossParts:
    """Return the parts of :func:`reference_generation_loss`; hidden states are turned into full logits first."""
    head = student.head if isinstance(student, HiddenStates) else None
    logits_MV = _logits(student, head)
    require_matrix(logits_MV, "The student's logits", "tokens × vocabulary")
    if labels_M.shape != logits_MV.shape[:1]:
        raise BALoraError(f"There are {len(logits_MV)} rows of logits and labels of shape {tuple(labels_M.shape)}.")
    valid_M = labels_M != IGNORED
    masked_M = valid_M if consistency_mask_M is None else valid_M & consistency_mask_M
    masked_MV, masked, masked_labels_M = widened(logits_MV[masked_M]), int(masked_M.sum()), labels_M[masked_M]
    valid_MV, labels_M = widened(logits_MV[valid_M]), labels_M[valid_M]
    tokens, items = len(labels_M), divisor(num_items, len(labels_M))

    nll_M = torch.nn.functional.cross_entropy(valid_MV, labels_M, reduction="none")
    weight_M = {"nll": torch.ones_like(nll_M), "dft": (-nll_M).exp().detach(), "none": torch.zeros_like(nll_M)}
    parts = {"task": (weight_M[terms.task_loss] * nll_M).sum() / items}
    if terms.consistency:
        if teacher is None:
            raise BALoraError("The consistency term needs the teacher's logits; pass them, or a weight of 0.")
        if isinstance(teacher, TopKTeacher):
            known = teacher.at(masked_M)
            values = (known.tokens_MK, known.log_probs_MK, known.log_tail_M)
            masked_MV = _without_targets(masked_MV, masked_labels_M, terms)
            term = consistency_topk(masked_MV, *values, terms.temperature)
        else:
            teacher_MV = _logits(teacher, head)
            require_same_shape(logits_MV, teacher_MV, "logits")
            pair = [_without_targets(z, masked_labels_M, terms) for z in (masked_MV, teacher_MV[masked_M])]
            term = consistency_term(pair[0], pair[1], terms.temperature)
        parts["consistency"] = term * masked / items
    if terms.diversity:
        parts["diversity"] = topk_negative_entropy(valid_MV, terms.top_k) * tokens / items
    if terms.spectral:
        rows_MV = gather_rows(valid_MV) if terms.across_processes else valid_MV
        parts["spectral"] = spectral_ratio(rows_MV, terms.spectral_rank, "frobenius")
    loss = torch.stack([part if name == "task" else getattr(terms, name) * part for name, part in parts.items()]).sum()
    return LossParts(loss=loss, **{name: part.detach() for name, part in parts.items()})


def _without_targets(logits_MV: Tensor, labels_M: Tensor, terms: LossTerms) -> Tensor:
    """Return logits that give the target no probability, if the consistency is to be without it."""
    if terms.consistency_tokens == "all":
        return logits_MV
    return logits_MV.scatter(1, labels_M[:, None], -torch.inf)


def _logits(outputs: Outputs, student_head: LinearHead | None) -> Tensor:
    if isinstance(outputs, Logits):
        return outputs.logits_MV
    head = outputs.head or student_head
    if head is None:
        raise TypeError("Hidden states need a head to become logits.")
    return head.logits(outputs.hidden_MD)
