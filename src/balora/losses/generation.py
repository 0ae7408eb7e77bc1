"""The generation loss as training uses it: from hidden states, without logits and without the vocabulary's spectrum.

The plain form is :func:`balora.losses.reference_generation_loss`; the tests hold the two equal.
Shapes: M positions, d hidden size (D as a suffix), V vocabulary.
"""

from __future__ import annotations

import contextlib
import math

import torch
from torch import Tensor

from balora.errors import BALoraError, raise_all
from balora.losses.chunked import TokenPass, token_loss
from balora.losses.kernel import Kernel, chosen, wrong_kernel
from balora.losses.loss_parts import LossParts
from balora.losses.reference import IGNORED, divisor
from balora.losses.spectral import SpectralBasis, logit_spectral_ratio
from balora.losses.token_terms import TokenTerms
from balora.losses.topk_teacher import TopKTeacher
from balora.models.lm_head import LinearHead
from balora.models.precision import autocast_dtype
from balora.regularizers.checks import require_matrix


@torch.compiler.disable
def generation_loss(
    hidden_MD: Tensor,
    labels_M: Tensor,
    head_VD: Tensor,
    teacher_hidden_MD: Tensor | None = None,
    *,
    consistency: float = 0.0,
    diversity: float = 0.0,
    spectral: float = 0.0,
    temperature: float = 2.0,
    top_k: int = 20,
    spectral_rank: int = 10,
    num_items: float | Tensor | None = None,
    bias_V: Tensor | None = None,
    teacher_head_VD: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    topk_teacher: TopKTeacher | None = None,
    consistency_mask_M: Tensor | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    spectral_basis: SpectralBasis | None = None,
    across_processes: bool = False,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
    kernel: Kernel | None = None,
) -> LossParts:
    r"""Cross-entropy plus the weighted regularizers of generation, from hidden states and the head.

    .. math:: L = \frac{1}{n} \sum_i \left( -\log p_{i, y_i} + \lambda_1 L_{CR,i} + \lambda_2 L_{DR,i} \right)
              + \lambda_3 L_{SVDR}, \qquad Z = c \tanh(s (H W^\top + b) / c)

    Positions labelled -100 are dropped before the head. The others meet it in chunks: logits, terms, the closed-form
    gradient, its product with the head, and the chunk is gone. The forward computes the gradients that are wanted (none
    in ``torch.no_grad()``), the backward multiplies them by what comes from above. The spectrum comes from the hidden
    states alone where the head is linear and frozen. A graph that ``torch.compile`` makes is left for the call.

    Args:
        hidden_MD: The student's last hidden states, any floating dtype. Under autocast they are cast as a head would.
        labels_M: The token each position is to predict (already shifted); -100 where there is none.
        head_VD: W, cast to the hidden states' dtype; gets a gradient where it requires one.
        teacher_hidden_MD: The pre-trained model's hidden states, a constant. Not needed where ``consistency`` is 0.
        consistency: λ1. A weight of 0 leaves its term out, costs nothing, and its part is None.
        diversity: λ2.
        spectral: λ3.
        temperature: T of the consistency. At 2, the paper's, one pass of exponentials over V is saved.
        top_k: K of the diversity.
        spectral_rank: k of the spectrum.
        num_items: n; default the number of valid tokens.
        bias_V: b; gets a gradient where it requires one. An entry of -inf rules its token out.
        teacher_head_VD: The teacher's head where it is not the student's, as when the head is trained.
        teacher_bias_V: The teacher's bias, likewise.
        topk_teacher: What is kept of the teacher at each position, in place of its hidden states; the consistency
            is then :func:`balora.regularizers.consistency_topk`.
        consistency_mask_M: Where the consistency is summed, true or false at each position; default everywhere. What
            the teacher holds elsewhere is not looked at.
        logit_scale: s.
        softcap: c; None for none.
        spectral_basis: What :meth:`SpectralBasis.from_head` made of this head once, so that it is not made again here.
        across_processes: Whether the spectrum is that of all processes' valid tokens; each process then has to call.
        chunk_tokens: Tokens to a chunk; default what ``memory_budget`` holds.
        memory_budget: Bytes for a chunk's buffers; default 32 MiB on a CPU and 256 MiB on an accelerator, or what 64 tokens take.
        kernel: ``"torch"``, or ``"triton"`` for one kernel in place of the passes over the logits (CUDA; all but a
            remembered teacher's terms, which stay torch's). None is torch's until a GPU has shown the other faster.

    Returns:
        The parts; float32 or wider. Without a valid token everything is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: Shapes do not fit, a setting is out of its range, ``consistency`` has no teacher, or a trained head
            has no head of the teacher's beside it; all that is wrong is in one message.

    Example:
        >>> hidden, head = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3)
        >>> parts = generation_loss(hidden, torch.tensor([1, -100]), head, diversity=0.1, top_k=4)
        >>> round(float(parts.task), 4), round(float(parts.diversity), 4), parts.consistency  # log 4, -log 4
        (1.3863, -1.3863, None)

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 9-12; METHOD §6.8-6.11.
    """
    head = LinearHead(head_VD, bias_V, logit_scale, softcap)
    if not consistency:
        teacher_hidden_MD = topk_teacher = None
    teacher = None
    if teacher_hidden_MD is not None:
        teacher = _teacher_head(head, teacher_head_VD, teacher_bias_V)
    weights = {"consistency": consistency, "diversity": diversity, "spectral": spectral}
    raise_all(
        _wrong_settings(weights, temperature, top_k, spectral_rank, chunk_tokens, memory_budget)
        + _wrong_shapes(hidden_MD, labels_M, head, teacher_hidden_MD, teacher)
        + _wrong_memory(topk_teacher, temperature, labels_M, bool(consistency), teacher_hidden_MD is not None)
        + _wrong_mask(consistency_mask_M, labels_M)
        + wrong_kernel(kernel, hidden_MD.device),
        "The generation loss cannot be computed",
    )

    device = hidden_MD.device.type
    narrow = autocast_dtype(device)
    dtype = narrow or hidden_MD.dtype
    with torch.autocast(device, enabled=False) if narrow else contextlib.nullcontext():
        valid = (labels_M != IGNORED).nonzero().squeeze(1)  # the one place that waits for the device
        hidden_MD, labels_M = hidden_MD[valid].to(dtype), labels_M[valid]
        head = head.to(dtype)
        terms = TokenTerms(consistency, diversity, temperature, top_k, softcap)
        plan = TokenPass(
            labels_M,
            terms,
            divisor(num_items, len(labels_M)),
            None if teacher_hidden_MD is None else teacher_hidden_MD.detach()[valid].to(dtype),
            None if teacher is None else teacher.to(dtype),
            None if topk_teacher is None else topk_teacher.at(valid),
            chunk_tokens,
            memory_budget,
            chosen(kernel, hidden_MD.device),
        )
        mask_M = None if consistency_mask_M is None or not consistency else consistency_mask_M[valid]
        loss, means_3 = token_loss(hidden_MD, head, plan) if mask_M is None else _in_two(hidden_MD, head, plan, mask_M)
        ratio = None
        if spectral:
            ratio = logit_spectral_ratio(
                hidden_MD, head, spectral_rank, spectral_basis, memory_budget, across_processes
            )
            loss = loss + spectral * ratio
    return LossParts(
        loss=loss,
        task=means_3[0],
        consistency=means_3[1] if consistency else None,
        diversity=means_3[2] if diversity else None,
        spectral=None if ratio is None else ratio.detach(),
    )


def _in_two(hidden_MD: Tensor, head: LinearHead, plan: TokenPass, mask_M: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens that have a teacher, and those that have none: every token meets the head once, as ever."""
    held, free = mask_M.nonzero().squeeze(1), mask_M.logical_not().nonzero().squeeze(1)
    one, other = token_loss(hidden_MD[held], head, plan.at(held)), token_loss(hidden_MD[free], head, plan.alone(free))
    return one[0] + other[0], one[1] + other[1]


def _teacher_head(head: LinearHead, weight_VD: Tensor | None, bias_V: Tensor | None) -> LinearHead | None:
    """Return the teacher's own head, or None where it is the student's.

    Raises:
        BALoraError: The student's head is trained and the teacher's is not given: the pre-trained model has another.
    """
    missing = [
        name
        for name, student, teacher in (("head_VD", head.weight_VD, weight_VD), ("bias_V", head.bias_V, bias_V))
        if student is not None and student.requires_grad and teacher is None
    ]
    if missing:
        raise BALoraError(
            f"The head is trained, so the teacher needs its own: pass {' and '.join('teacher_' + m for m in missing)}, "
            "as they were before training."
        )
    if weight_VD is None and bias_V is None:
        return None
    weight_VD = head.weight_VD if weight_VD is None else weight_VD
    return LinearHead(weight_VD, head.bias_V if bias_V is None else bias_V, head.logit_scale, head.softcap).detach()


def _wrong_settings(
    weights: dict[str, float],
    temperature: float,
    top_k: int,
    spectral_rank: int,
    chunk_tokens: int | None,
    memory_budget: int | None,
) -> list[str]:
    problems = [
        f"The weight {name} must be a finite number, 0 or more, and it is {weight}."
        for name, weight in weights.items()
        if not (math.isfinite(weight) and weight >= 0)
    ]
    if not (math.isfinite(temperature) and temperature > 0):
        problems.append(f"temperature must be a positive number, and it is {temperature}.")
    if weights["diversity"] and top_k < 2:
        problems.append(f"top_k must be at least 2, as one candidate has no entropy, and it is {top_k}.")
    if weights["spectral"] and spectral_rank < 1:
        problems.append(f"spectral_rank must be at least 1, and it is {spectral_rank}.")
    for name, value in (("chunk_tokens", chunk_tokens), ("memory_budget", memory_budget)):
        if value is not None and value < 1:
            problems.append(f"{name} must be at least 1, or None for the default, and it is {value}.")
    return problems


def _wrong_shapes(
    hidden_MD: Tensor,
    labels_M: Tensor,
    head: LinearHead,
    teacher_hidden_MD: Tensor | None,
    teacher: LinearHead | None,
) -> list[str]:
    require_matrix(hidden_MD, "The hidden states", "tokens × hidden size")
    problems = []
    if hidden_MD.shape[1] != head.weight_VD.shape[1]:
        problems.append(
            f"The hidden states have {hidden_MD.shape[1]} columns and the head {head.weight_VD.shape[1]}; the head is "
            "vocabulary × hidden size."
        )
    if labels_M.shape != hidden_MD.shape[:1]:
        problems.append(f"There are {len(hidden_MD)} hidden states and labels of shape {tuple(labels_M.shape)}.")
    if teacher_hidden_MD is not None and teacher_hidden_MD.shape != hidden_MD.shape:
        problems.append(
            f"Student and teacher hidden states must have one shape, and they are {tuple(hidden_MD.shape)} and "
            f"{tuple(teacher_hidden_MD.shape)}."
        )
    if teacher is not None and teacher.weight_VD.shape != head.weight_VD.shape:
        problems.append(
            f"Student and teacher heads must have one shape, and they are {tuple(head.weight_VD.shape)} and "
            f"{tuple(teacher.weight_VD.shape)}."
        )
    return problems


def _wrong_mask(mask_M: Tensor | None, labels_M: Tensor) -> list[str]:
    if mask_M is None or (mask_M.dtype == torch.bool and mask_M.shape == labels_M.shape):
        return []
    return [
        f"consistency_mask_M is one true or false for each of the {len(labels_M)} positions, and it is {mask_M.dtype} of "
        f"shape {tuple(mask_M.shape)}."
    ]


def _wrong_memory(
    memory: TopKTeacher | None, temperature: float, labels_M: Tensor, wanted: bool, has_hidden: bool
) -> list[str]:
    if memory is None:
        return (
            []
            if has_hidden or not wanted
            else ["The consistency term needs teacher_hidden_MD; pass it, or a weight of 0."]
        )
    problems = []
    if has_hidden:
        problems.append("The teacher is given twice, as hidden states and as remembered; leave one of them out.")
    if memory.temperature != temperature:
        problems.append(
            f"The teacher is remembered at temperature {memory.temperature}, and the loss is at {temperature}."
        )
    if len(memory) != len(labels_M):
        problems.append(f"The teacher is remembered at {len(memory)} positions, and there are {len(labels_M)} labels.")
    return problems
