"""The token terms without full logits: each chunk of tokens goes through the head, and its memory is reused.

A chunk is as many tokens as the memory budget allows; it is the unit of the matrix products. A tile is a part of a chunk;
it is the unit of the arithmetic on logits, small enough for its scratch memory to stay in cache.
Shapes: M valid tokens, m tokens of a chunk or tile, d hidden size (D as a suffix), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from balora.losses.loss_parts import HiddenStates, LossTerms
from balora.losses.token_terms import score_scale, token_terms_
from balora.losses.topk_teacher import TopKTeacher
from balora.losses.triton_token_terms import Kernel, kernel_problems, token_terms_of_products_
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import refuse_second_derivative

CPU_BUDGET = 32 * 2**20
ACCELERATOR_BUDGET = 256 * 2**20
LEAST_TOKENS = 64
"""Minimum tokens of a default chunk for any vocabulary: with fewer rows, reading the head dominates the product's time."""
_TILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class ComputeOptions:
    """Settings that change time and memory of the fused loss, not its value; None is the default of each.

    ``memory_budget`` is the bytes of a chunk's buffers. With a top-k teacher the kernel is always torch.
    """

    chunk_tokens: int | None = None
    memory_budget: int | None = None
    kernel: Kernel | None = None

    def problems(self, device: torch.device) -> list[str]:
        """Return one sentence for each value that cannot be used on the device."""
        problems = [
            f"{name} must be at least 1, or None for the default, and it is {value}."
            for name, value in (("chunk_tokens", self.chunk_tokens), ("memory_budget", self.memory_budget))
            if value is not None and value < 1
        ]
        return problems + kernel_problems(self.kernel, device)


@dataclass(frozen=True)
class TokenPass:
    """Constants of one pass over the valid tokens, beside the hidden states and the head that it differentiates.

    The sums of the terms are divided by ``items``. The teacher is None exactly if the consistency weight is 0. The kernel
    in ``options`` is already chosen.
    """

    labels_M: Tensor
    terms: LossTerms
    items: float | Tensor
    teacher: HiddenStates | TopKTeacher | None
    options: ComputeOptions

    @property
    def from_products(self) -> bool:
        """True if Triton computes the terms from the bare products with the head, and not torch from float32 scores."""
        return self.options.kernel == "triton" and not isinstance(self.teacher, TopKTeacher)

    def at(self, positions: Tensor) -> TokenPass:
        """Return the pass over some of the positions."""
        teacher = None if self.teacher is None else self.teacher.at(positions)
        return replace(self, labels_M=self.labels_M[positions], teacher=teacher)

    def without_teacher(self) -> TokenPass:
        """Return the pass without the consistency term."""
        return replace(self, terms=replace(self.terms, consistency=0.0), teacher=None)


def chunk_tokens_for(
    budget: int | None, hidden_MD: Tensor, head: LinearHead, *, teacher: bool, from_products: bool = False
) -> int:
    """Choose the number of tokens of a chunk so that all its buffers together stay within a memory budget.

    ``teacher``: a chunk has the teacher's logits beside the student's. ``from_products``: it has only the products with
    the head, in the hidden states' dtype.

    Larger chunks make faster matrix products. On one core of a Xeon at 2.5 GHz, 512 tokens with d 512 and V 32 000 took
    190 ms in chunks of 128, 157 ms in chunks of 256 (the default, student and teacher together) and 144 ms in one piece.
    Each chunk reads the whole head, so the default never goes below `LEAST_TOKENS`: with V 128 256 chunks of 64 took 0.72
    of the time of chunks of 32, which 32 MiB allow; with V 256 000 they took 0.63 of the time of chunks of 16. Chunks have
    equal sizes, because a small last one would waste its product. On a CPU a tile's scratch memory, 8 MiB or a single
    row, is added to that.
    """
    narrow, wide = hidden_MD.dtype.itemsize, torch.promote_types(hidden_MD.dtype, torch.float32).itemsize
    on_cpu = hidden_MD.device.type == "cpu"
    sides = 2 if teacher else 1
    per_entry = sides * (narrow if from_products else wide)
    if narrow < wide and not from_products:  # the product before it is widened, and the gradient after it is narrowed
        per_entry += (sides + 1) * narrow
    if not on_cpu and not from_products:  # the tile is the whole chunk, so its scratch memory counts
        per_entry += wide * (1 + int(head.softcap is not None))  # a soft cap needs a buffer for its derivative
    least = 1
    if budget is None:
        budget, least = CPU_BUDGET if on_cpu else ACCELERATOR_BUDGET, LEAST_TOKENS
    largest = max(budget // (per_entry * head.vocabulary), least)
    chunks = max(-(-len(hidden_MD) // largest), 1)
    return max(-(-len(hidden_MD) // chunks), 1)


def token_loss(hidden_MD: Tensor, head: LinearHead, plan: TokenPass) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the token terms, on the graph, and the three unweighted terms, detached."""
    if not torch.is_grad_enabled():  # a Function sees requires_grad only, and would compute the gradient in vain
        hidden_MD, head = hidden_MD.detach(), head.detach()
    loss, means_3 = _TokenLoss.apply(hidden_MD, head.weight_VD, head.bias_V, head, plan)
    return loss, means_3


class _TokenLoss(torch.autograd.Function):
    """Value and gradients in one forward; the backward only multiplies by the upstream gradient."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, head: LinearHead, plan: TokenPass
    ) -> tuple[Tensor, Tensor]:
        gradients = _Gradients(hidden_MD, head, ctx.needs_input_grad[:3])
        means_3 = _sum_terms(hidden_MD, head, plan, gradients) / plan.items
        loss = means_3[0] + plan.terms.consistency * means_3[1] + plan.terms.diversity * means_3[2]
        ctx.save_for_backward(*gradients.all())
        ctx.scale, ctx.items = head.logit_scale, plan.items
        ctx.dtypes = [None if t is None else t.dtype for t in (hidden_MD, weight_VD, bias_V)]
        ctx.mark_non_differentiable(means_3)
        return loss, means_3

    @staticmethod
    def backward(ctx: Any, upstream: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("The generation loss")
        factor = upstream * ctx.scale / ctx.items
        gradients = [
            None if gradient is None else (gradient * factor).to(dtype)
            for gradient, dtype in zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        ]
        return *gradients, None, None


class _Gradients:
    """Gradients of the sum of the terms, filled chunk by chunk; the factor of the logit scale is still missing."""

    def __init__(self, hidden_MD: Tensor, head: LinearHead, needed: tuple[bool, ...]) -> None:
        wide = torch.promote_types(hidden_MD.dtype, torch.float32)
        need_hidden, need_weight, need_bias = needed
        self.head = head
        self.hidden_MD = torch.empty_like(hidden_MD) if need_hidden else None
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=wide) if need_weight else None
        self.bias_V = hidden_MD.new_zeros(head.vocabulary, dtype=wide) if need_bias else None

    def all(self) -> tuple[Tensor | None, ...]:
        return self.hidden_MD, self.weight_VD, self.bias_V

    def add(self, rows: slice, hidden_mD: Tensor, logits_mV: Tensor) -> None:
        """Project a chunk's gradient with respect to the logits back through the head."""
        narrow_mV = logits_mV.to(hidden_mD.dtype)
        if self.hidden_MD is not None:
            torch.mm(narrow_mV, self.head.weight_VD, out=self.hidden_MD[rows])
        if self.weight_VD is not None:
            if self.weight_VD.dtype == narrow_mV.dtype:
                self.weight_VD.addmm_(narrow_mV.T, hidden_mD)
            else:
                self.weight_VD.add_(narrow_mV.T @ hidden_mD)
        if self.bias_V is not None:
            self.bias_V.add_(logits_mV.sum(dim=0, dtype=self.bias_V.dtype))


def _sum_terms(hidden_MD: Tensor, head: LinearHead, plan: TokenPass, gradients: _Gradients) -> Tensor:
    """Return the sums of the three terms over the tokens, and fill ``gradients``."""
    tokens, products = len(hidden_MD), plan.from_products
    need = any(gradient is not None for gradient in gradients.all())
    teacher = plan.teacher if isinstance(plan.teacher, HiddenStates) else None
    wide = torch.promote_types(hidden_MD.dtype, torch.float32)
    values_3M = hidden_MD.new_zeros(3, tokens, dtype=wide)
    chunk = plan.options.chunk_tokens or chunk_tokens_for(
        plan.options.memory_budget, hidden_MD, head, teacher=teacher is not None, from_products=products
    )
    rows_of_buffer = min(chunk, tokens) * (1 if teacher is None else 2)
    buffer = hidden_MD.new_empty(rows_of_buffer, head.vocabulary, dtype=hidden_MD.dtype if products else wide)
    for start in range(0, tokens, chunk):
        rows = slice(start, min(start + chunk, tokens))
        teacher_m = None if teacher is None else teacher.at(rows)
        student_mV, teacher_mV = _scores(hidden_MD[rows], head, teacher_m, plan, buffer)
        labels_m, values_3m = plan.labels_M[rows], values_3M[:, rows]
        if products:
            bias_V = (head if teacher is None or teacher.head is None else teacher.head).bias_V
            token_terms_of_products_(student_mV, teacher_mV, head, bias_V, labels_m, plan.terms, values_3m, need)
        else:
            tile = _tile_rows(student_mV)
            for first in range(0, len(student_mV), tile):
                part = slice(first, min(first + tile, len(student_mV)))
                known: Tensor | TopKTeacher | None = None if teacher_mV is None else teacher_mV[part]
                if isinstance(plan.teacher, TopKTeacher):
                    known = plan.teacher.at(slice(start + part.start, start + part.stop))
                token_terms_(
                    student_mV[part], known, labels_m[part], plan.terms, head.softcap, values_3m[:, part], need
                )
        if need:
            gradients.add(rows, hidden_MD[rows], student_mV if teacher_mV is None else teacher_mV)
    return values_3M.sum(dim=1)


def _scores(
    hidden_mD: Tensor, head: LinearHead, teacher: HiddenStates | None, plan: TokenPass, buffer: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Fill the buffer with a chunk's scores, or bare products; return the rows of student and teacher."""
    count = len(hidden_mD)
    student_mV, teacher_mV = buffer[:count], buffer[count : 2 * count]

    def fill(head: LinearHead, hidden_mD: Tensor, out_mV: Tensor) -> None:
        if plan.from_products:
            torch.mm(hidden_mD, head.weight_VD.T, out=out_mV)
        else:
            head.affine(hidden_mD, score_scale(plan.terms, head.softcap), out_mV)

    if teacher is None:
        fill(head, hidden_mD, student_mV)
        return student_mV, None
    if teacher.head is None:  # one product for both, so the head is read once
        fill(head, torch.cat([hidden_mD, teacher.hidden_MD]), buffer[: 2 * count])
    else:
        fill(head, hidden_mD, student_mV)
        fill(teacher.head, teacher.hidden_MD, teacher_mV)
    return student_mV, teacher_mV


def _tile_rows(scores: Tensor) -> int:
    """Return the rows of a tile: 8 MiB on a CPU, the whole chunk on an accelerator, where each launch has a cost.

    Smaller tiles (256 KiB to 2 MiB) were no faster on one thread and up to three times slower on two busy threads.
    """
    if scores.device.type != "cpu":
        return max(len(scores), 1)
    return max(_TILE_BYTES // max(scores.shape[1] * scores.element_size(), 1), 1)
