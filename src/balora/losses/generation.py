"""The generation loss in its fused form: from hidden states, without logits and without an SVD over the vocabulary.

The plain form is :mod:`balora.losses.reference`; the tests compare the two.
Shapes: M positions, d hidden size (D as a suffix), V vocabulary.
"""

import contextlib
from dataclasses import replace

import torch
from torch import Tensor

from balora.deprecation import deprecated_keywords
from balora.errors import BALoraError, raise_all
from balora.losses.chunked import ComputeOptions, TokenPass, token_loss
from balora.losses.loss_parts import (
    IGNORED,
    ConsistencyTokens,
    HiddenStates,
    LossParts,
    LossTerms,
    Outputs,
    TaskLoss,
    Teacher,
    divisor,
)
from balora.losses.spectral import SpectralBasis, logit_spectral_ratio
from balora.losses.topk_teacher import TopKTeacher
from balora.losses.triton_token_terms import Kernel, choose_kernel
from balora.models.lm_head import LinearHead
from balora.models.precision import autocast_dtype
from balora.regularizers.checks import require_matrix

_DEFAULT = ComputeOptions()


@deprecated_keywords(remembered_teacher="topk_teacher")
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
    task_loss: TaskLoss = "nll",
    consistency_tokens: ConsistencyTokens = "all",
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

    Positions labelled -100 are dropped before the head. The others are processed in chunks: the logits of a chunk, its
    terms, their closed-form gradient and its product with the head are computed, then the chunk's memory is reused. The
    forward computes the gradients that are needed (none in ``torch.no_grad()``); the backward multiplies them by the
    upstream gradient. If the head is linear, the spectral term is computed from the hidden states without logits.
    ``torch.compile`` breaks the graph at this call.

    Args:
        hidden_MD: Last hidden states of the student, any floating dtype. Under autocast they are cast as a head would.
        labels_M: Token that each position is to predict (already shifted); -100 for none.
        head_VD: W, cast to the hidden states' dtype; gets a gradient if it requires one.
        teacher_hidden_MD: Hidden states of the pre-trained model, a constant. Not needed if ``consistency`` is 0.
        consistency: λ1. With a weight of 0 the term costs nothing, and its part is None.
        diversity: λ2.
        spectral: λ3.
        temperature: T of the consistency. The value 2, the paper's, saves one pass of exponentials over V.
        top_k: K of the diversity.
        spectral_rank: k of the spectral term.
        task_loss: Loss of each target: ``nll``; ``dft``, the nll times the target's own probability as a constant (Wu et
            al., 2025, arXiv 2508.05629); or ``none``.
        consistency_tokens: ``all``, or ``non_target``: the consistency compares both models without the target, so that it
            does not oppose the task (arXiv 2605.29498).
        num_items: n; default the number of valid tokens.
        bias_V: b; gets a gradient if it requires one. An entry of -inf rules its token out.
        teacher_head_VD: Head of the teacher; default the student's. Required if the head is trained.
        teacher_bias_V: Bias of the teacher; default the student's. Required if the bias is trained.
        topk_teacher: Top-k teacher in place of the hidden states; the consistency is then
            :func:`balora.regularizers.consistency_topk`.
        consistency_mask_M: True at each position that the consistency is summed over; default all. The teacher's values
            at the other positions are not used.
        logit_scale: s.
        softcap: c; None for none.
        spectral_basis: Factor of this head, made once by :meth:`SpectralBasis.from_head`; default made in each call.
        across_processes: Compute the spectral term over the valid tokens of all processes. Every process must then call.
        chunk_tokens: Tokens of a chunk; default as many as ``memory_budget`` allows.
        memory_budget: Bytes for a chunk's buffers; default 32 MiB on a CPU and 256 MiB on an accelerator, or more if 64
            tokens need more.
        kernel: ``"torch"``, or ``"triton"`` for one kernel in place of the passes over the logits (CUDA only). The terms
            of a top-k teacher always use torch. None is Triton on a CUDA device that has it, torch elsewhere.

    Returns:
        The parts; float32 or wider. Without a valid token everything is 0, still on the graph, with zero gradients.

    Raises:
        BALoraError: The shapes do not match, a setting is out of range, ``consistency`` has no teacher, or the head is
            trained and the teacher has no head of its own. The message lists every problem.

    Example:
        >>> hidden, head = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3)
        >>> parts = generation_loss(hidden, torch.tensor([1, -100]), head, diversity=0.1, top_k=4)
        >>> round(float(parts.task), 4), round(float(parts.diversity), 4), parts.consistency  # log 4, -log 4
        (1.3863, -1.3863, None)

    Reference: Chang et al., BA-LoRA, ICLR 2026, eq. 9-12; method.md, departures 8-11.
    """
    head = LinearHead(head_VD, bias_V, logit_scale, softcap)
    teacher: Teacher | None = topk_teacher
    if consistency and teacher_hidden_MD is not None:
        if topk_teacher is not None:
            raise BALoraError(
                "The teacher is given twice, as hidden states and as topk_teacher; leave one of them out."
            )
        teacher = HiddenStates(teacher_hidden_MD, _teacher_head(head, teacher_head_VD, teacher_bias_V))
    student = HiddenStates(hidden_MD, head, spectral_basis)
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
    options = ComputeOptions(chunk_tokens, memory_budget, kernel)
    return fused_loss(student, labels_M, terms, teacher, num_items, consistency_mask_M, options)


@torch.compiler.disable
def fused_loss(
    student: Outputs,
    labels_M: Tensor,
    terms: LossTerms,
    teacher: Teacher | None = None,
    num_items: float | Tensor | None = None,
    consistency_mask_M: Tensor | None = None,
    options: ComputeOptions = _DEFAULT,
) -> LossParts:
    """Return the parts of :func:`generation_loss` for hidden states with their head; refuse logits with a TypeError.

    :func:`balora.losses.reference.reference_loss` has the same signature, except for the options.
    """
    if not isinstance(student, HiddenStates) or student.head is None:
        raise TypeError("The fused form takes the student's hidden states with their head.")
    head, hidden_MD = student.head, student.hidden_MD
    teacher = teacher if terms.consistency else None
    raise_all(
        terms.problems()
        + options.problems(hidden_MD.device)
        + _shape_problems(hidden_MD, head, labels_M, consistency_mask_M)
        + _teacher_problems(teacher, hidden_MD, head, labels_M, terms),
        "The generation loss cannot be computed",
    )

    device = hidden_MD.device.type
    autocast = autocast_dtype(device)
    dtype = autocast or hidden_MD.dtype
    with torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext():
        valid = (labels_M != IGNORED).nonzero().squeeze(1)  # the only wait for the device
        hidden_MD, labels_M = hidden_MD[valid].to(dtype), labels_M[valid]
        head = head.to(dtype)
        items, teacher = divisor(num_items, len(labels_M)), _teacher_at(teacher, valid, dtype)
        options = replace(options, kernel=choose_kernel(options.kernel, hidden_MD.device))
        plan = TokenPass(labels_M, terms, items, teacher, options)
        if consistency_mask_M is None or not terms.consistency:
            loss, means_3 = token_loss(hidden_MD, head, plan)
        else:
            # Tokens with and without a teacher take separate passes, so each token goes through the head only once.
            mask_M = consistency_mask_M[valid]
            inside, outside = (mask.nonzero().squeeze(1) for mask in (mask_M, ~mask_M))
            loss, means_3 = token_loss(hidden_MD[inside], head, plan.at(inside))
            other_loss, other_means_3 = token_loss(hidden_MD[outside], head, plan.without_teacher().at(outside))
            loss, means_3 = loss + other_loss, means_3 + other_means_3
        ratio = None
        if terms.spectral:
            basis, budget = student.spectral_basis, options.memory_budget
            ratio = logit_spectral_ratio(hidden_MD, head, terms.spectral_rank, basis, budget, terms.across_processes)
            loss = loss + terms.spectral * ratio
    return LossParts(
        loss=loss,
        task=means_3[0],
        consistency=means_3[1] if terms.consistency else None,
        diversity=means_3[2] if terms.diversity else None,
        spectral=None if ratio is None else ratio.detach(),
    )


def _teacher_at(teacher: Teacher | None, valid: Tensor, dtype: torch.dtype) -> HiddenStates | TopKTeacher | None:
    """Return the teacher at the valid positions, as a constant in the dtype of the computation."""
    if isinstance(teacher, HiddenStates):
        head = None if teacher.head is None else teacher.head.detach().to(dtype)
        return HiddenStates(teacher.hidden_MD.detach()[valid].to(dtype), head)
    return teacher.at(valid) if isinstance(teacher, TopKTeacher) else None


def _teacher_head(head: LinearHead, weight_VD: Tensor | None, bias_V: Tensor | None) -> LinearHead | None:
    """Return the teacher's own head, or None if it is the student's. A trained head and no head for the teacher is an error."""
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
    return LinearHead(weight_VD, head.bias_V if bias_V is None else bias_V, head.logit_scale, head.softcap)


def _shape_problems(hidden_MD: Tensor, head: LinearHead, labels_M: Tensor, mask_M: Tensor | None) -> list[str]:
    require_matrix(hidden_MD, "The hidden states", "tokens × hidden size")
    problems = []
    if (width := hidden_MD.shape[1]) != (size := head.weight_VD.shape[1]):
        problems.append(
            f"The hidden states have {width} columns and the head {size}; the head is vocabulary × hidden size."
        )
    if labels_M.shape != hidden_MD.shape[:1]:
        problems.append(f"There are {len(hidden_MD)} hidden states and labels of shape {tuple(labels_M.shape)}.")
    if mask_M is not None and (mask_M.dtype != torch.bool or mask_M.shape != labels_M.shape):
        problems.append(
            f"consistency_mask_M must be one true or false for each of the {len(labels_M)} positions, and it is "
            f"{mask_M.dtype} of shape {tuple(mask_M.shape)}."
        )
    return problems


def _teacher_problems(
    teacher: Teacher | None, hidden_MD: Tensor, head: LinearHead, labels_M: Tensor, terms: LossTerms
) -> list[str]:
    if teacher is None:
        wanted = "The consistency term needs teacher_hidden_MD; pass it, or a weight of 0."
        return [wanted] if terms.consistency else []
    if isinstance(teacher, TopKTeacher):
        made, count = teacher.temperature, len(teacher)
        wanted = "without" if terms.consistency_tokens == "non_target" else "with"
        checks = [
            (
                teacher.without_target == (wanted == "without"),
                f"The top-k teacher was not made {wanted} the targets, as consistency_tokens: "
                f"{terms.consistency_tokens} needs it.",
            ),
            (
                made == terms.temperature,
                f"The top-k teacher was made at temperature {made}, and the loss is at {terms.temperature}.",
            ),
            (count == len(labels_M), f"The top-k teacher has {count} positions, and there are {len(labels_M)} labels."),
        ]
    elif isinstance(teacher, HiddenStates):
        trained = "The head is trained, so the teacher needs its own: the head as it was before training."
        shapes = [("hidden states", hidden_MD.shape, teacher.hidden_MD.shape)]
        if teacher.head is not None:
            shapes.append(("heads", head.weight_VD.shape, teacher.head.weight_VD.shape))
        checks = [(teacher.head is not None or not head.trainable, trained)] + [
            (
                ours == theirs,
                f"Student and teacher {kind} must have one shape, and they are {tuple(ours)} and {tuple(theirs)}.",
            )
            for kind, ours, theirs in shapes
        ]
    else:
        raise TypeError("The fused form takes the teacher's hidden states or a top-k teacher.")
    return [message for fits, message in checks if not fits]
