"""The anchors' loss for a training loop of one's own: hold the student to the pre-trained model, without a task.

The plain form is :func:`balora.regularizers.consistency` at temperature 1.
Shapes: M positions, d hidden size (D as a suffix), V vocabulary.
"""

import torch
from torch import Tensor

from balora.losses.generation import generation_loss
from balora.losses.topk_teacher import TopKTeacher
from balora.losses.triton_token_terms import Kernel


def anchor_loss(
    hidden_MD: Tensor,
    head_VD: Tensor,
    teacher_hidden_MD: Tensor | None = None,
    *,
    temperature: float = 1.0,
    num_items: float | Tensor | None = None,
    bias_V: Tensor | None = None,
    teacher_head_VD: Tensor | None = None,
    teacher_bias_V: Tensor | None = None,
    topk_teacher: TopKTeacher | None = None,
    logit_scale: float = 1.0,
    softcap: float | None = None,
    chunk_tokens: int | None = None,
    memory_budget: int | None = None,
    kernel: Kernel | None = None,
) -> Tensor:
    r"""KL divergence of the student from the pre-trained model on anchors, without logits.

    .. math:: L_A = \frac{T^2}{n} \sum_i \mathrm{KL}\left(
              \mathrm{softmax}(z_{P,i} / T) \,\|\, \mathrm{softmax}(z_{F,i} / T) \right)

    Add λ_A times it to the loss of the task. With T = 1 it is the drift in nats per token.

    Args:
        hidden_MD: Last hidden states of the student at every position that is compared, any floating dtype.
        head_VD: Head of the student; gets a gradient if it requires one.
        teacher_hidden_MD: Hidden states of the pre-trained model, a constant.
        temperature: T, above 0.
        num_items: n; default M. With accumulation, the positions of all micro-batches.
        bias_V: Bias of the head.
        teacher_head_VD: Head of the teacher; default the student's. Required if the head is trained.
        teacher_bias_V: Bias of the teacher; default the student's. Required if the bias is trained.
        topk_teacher: The teacher's likeliest tokens, in place of its hidden states.
        logit_scale: Factor on the logits.
        softcap: Soft cap of the logits; None for none.
        chunk_tokens: Positions of a chunk; see :func:`balora.losses.generation_loss`.
        memory_budget: Bytes for a chunk.
        kernel: ``torch`` or ``triton``; see :func:`balora.losses.generation_loss`.

    Returns:
        Scalar in nats, 0 or more up to rounding; float32 or wider. Without positions it is 0, still on the graph.

    Raises:
        BALoraError: The shapes do not match, there is no teacher, or a setting is out of range.

    Example:
        >>> hidden, head = torch.zeros(2, 3, requires_grad=True), torch.ones(4, 3)
        >>> float(anchor_loss(hidden, head, torch.ones(2, 3)).detach())  # both models give every token the same probability
        0.0
    """
    labels_M = torch.zeros(len(hidden_MD), dtype=torch.long, device=hidden_MD.device)
    return generation_loss(
        hidden_MD, labels_M, head_VD, teacher_hidden_MD, consistency=1.0, task_loss="none", temperature=temperature,
        num_items=num_items, bias_V=bias_V, teacher_head_VD=teacher_head_VD, teacher_bias_V=teacher_bias_V,
        topk_teacher=topk_teacher, logit_scale=logit_scale, softcap=softcap, chunk_tokens=chunk_tokens,
        memory_budget=memory_budget, kernel=kernel,
    ).loss  # fmt: skip
