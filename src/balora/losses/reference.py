"""The generation loss as the paper writes it: full logits, plain formulas, autograd. The fast form is held equal to it.

Shapes: M positions, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from balora.errors import BALoraError
from balora.losses.collectives import rows_of_all_processes
from balora.losses.loss_parts import LossParts
from balora.losses.topk_teacher import TopKTeacher
from balora.regularizers import consistency as consistency_term
from balora.regularizers import consistency_topk, spectral_ratio, topk_negative_entropy
from balora.regularizers.checks import require_matrix, require_same_shape, widened

IGNORED = -100


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
    num_items: float | Tensor | None = None,
    topk_teacher: TopKTeacher | None = None,
    consistency_mask_M: Tensor | None = None,
    across_processes: bool = False,
) -> LossParts:
    r"""Cross-entropy plus the weighted regularizers of generation, from full logits.

    .. math:: L = \frac{1}{n} \sum_i \left( -\log p_{i, y_i} + \lambda_1 L_{CR,i} + \lambda_2 L_{DR,i} \right)
              + \lambda_3 L_{SVDR}

    The token terms are sums over the valid tokens divided by n, the size of the whole accumulated batch, so that any
    split of it gives the same gradient; the spectrum is that of these tokens alone, or of all processes'.

    Args:
        student_logits_MV: Scores of the model being trained, any floating dtype, scaled and capped as the model does.
        labels_M: The token each row is to predict (already shifted); -100 where there is none.
        teacher_logits_MV: Scores of the pre-trained model, a constant; may be None where ``consistency`` is 0.
        consistency: λ1. A weight of 0 leaves its term out, and its part is None.
        diversity: λ2.
        spectral: λ3.
        temperature: T of the consistency.
        top_k: K of the diversity.
        spectral_rank: k of the spectrum.
        num_items: n; default the number of valid tokens.
        topk_teacher: What is kept of the teacher at each position, in place of its logits.
        consistency_mask_M: Where the consistency is summed, true or false at each position; default everywhere.
        across_processes: Whether the spectrum is that of all processes' logits, which are gathered: each has to call.

    Returns:
        The parts; float32 or wider. Without a valid token everything is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: The shapes do not fit, or ``consistency`` has no teacher.

    Example:
        >>> logits = torch.zeros(2, 4)
        >>> round(float(reference_generation_loss(logits, torch.tensor([1, -100])).loss), 4)  # log 4
        1.3863

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 9-12.
    """
    require_matrix(student_logits_MV, "The student's logits", "tokens × vocabulary")
    if labels_M.shape != student_logits_MV.shape[:1]:
        raise BALoraError(
            f"There are {len(student_logits_MV)} rows of logits and labels of shape {tuple(labels_M.shape)}."
        )
    valid_M = labels_M != IGNORED
    picked_M = valid_M if consistency_mask_M is None else valid_M & consistency_mask_M
    held_MV, picked = widened(student_logits_MV[picked_M]), int(picked_M.sum())
    student_MV, labels_M = widened(student_logits_MV[valid_M]), labels_M[valid_M]
    tokens, items = len(labels_M), divisor(num_items, len(labels_M))

    parts = {"task": torch.nn.functional.cross_entropy(student_MV, labels_M, reduction="sum") / items}
    weights = {"task": 1.0, "consistency": consistency, "diversity": diversity, "spectral": spectral}
    if consistency and topk_teacher is not None:
        known = topk_teacher.at(picked_M)
        term = consistency_topk(held_MV, known.tokens_MK, known.log_probs_MK, known.log_tail_M, temperature)
        parts["consistency"] = term * picked / items
    elif consistency:
        if teacher_logits_MV is None:
            raise BALoraError("The consistency term needs the teacher's logits; pass them, or a weight of 0.")
        require_same_shape(student_logits_MV, teacher_logits_MV, "logits")
        parts["consistency"] = consistency_term(held_MV, teacher_logits_MV[picked_M], temperature) * picked / items
    if diversity:
        parts["diversity"] = topk_negative_entropy(student_MV, top_k) * tokens / items
    if spectral:
        rows_MV = rows_of_all_processes(student_MV) if across_processes else student_MV
        parts["spectral"] = spectral_ratio(rows_MV, spectral_rank, "frobenius")
    loss = torch.stack([weights[name] * part for name, part in parts.items()]).sum()
    return LossParts(loss=loss, **{name: part.detach() for name, part in parts.items()})


def divisor(num_items: float | Tensor | None, tokens: int) -> float | Tensor:
    """Return what the token sums are divided by, which is never 0; a tensor stays on its device, unread."""
    if num_items is None:
        return float(max(tokens, 1))
    if isinstance(num_items, Tensor):
        num_items = num_items.reshape(())
        return torch.where(num_items > 0, num_items, 1)
    return num_items if num_items > 0 else 1.0
