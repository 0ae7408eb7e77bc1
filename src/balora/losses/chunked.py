"""The token terms without logits: chunk by chunk through the head, gradient and all, and the chunk is dropped.

A chunk is as many tokens as the memory budget holds, for the matrix products; a tile of it is a few of these, for the
arithmetic between them, so that its scratch stays small and in cache.
Shapes: M valid tokens, m tokens of a chunk or tile, d hidden size (D as a suffix), V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from balora.losses.kernel import Kernel
from balora.losses.token_terms import TokenTerms, token_terms_
from balora.losses.topk_teacher import TopKTeacher
from balora.models.lm_head import LinearHead
from balora.regularizers.checks import refuse_second_derivative

CPU_BUDGET = 32 * 2**20
ACCELERATOR_BUDGET = 256 * 2**20
LEAST_TOKENS = 64
"""To a default chunk, however large the vocabulary: a product of fewer rows takes as long as reading the head does."""
_TILE_BYTES = 8 * 2**20


@dataclass(frozen=True)
class TokenPass:
    """All that one pass over the tokens needs beside the hidden states and the head it differentiates.

    Attributes:
        labels_M: Targets in [0, V); nothing ignored is left.
        terms: Which terms, how strong.
        items: What the sums are divided by.
        teacher_hidden_MD: Where the consistency weight is not 0.
        teacher: The teacher's head; None where it is the student's.
        remembered: What is kept of the teacher, in place of its hidden states.
        chunk_tokens: Tokens to a chunk; None for what the budget holds.
        memory_budget: Bytes for a chunk's buffers; None for the default.
        kernel: Which form of the token terms. A remembered teacher has torch's alone, whatever stands here.
    """

    labels_M: Tensor
    terms: TokenTerms
    items: float | Tensor
    teacher_hidden_MD: Tensor | None = None
    teacher: LinearHead | None = None
    remembered: TopKTeacher | None = None
    chunk_tokens: int | None = None
    memory_budget: int | None = None
    kernel: Kernel = "torch"

    @property
    def from_products(self) -> bool:
        """Whether the terms are made of the bare products with the head, by Triton, and not of wide scores."""
        return self.kernel == "triton" and self.remembered is None

    def chunk(self, hidden_MD: Tensor, head: LinearHead) -> int:
        """Tokens to a chunk, for these hidden states and this head."""
        teacher = self.teacher_hidden_MD is not None
        return self.chunk_tokens or chunk_tokens_for(
            self.memory_budget, hidden_MD, head, teacher=teacher, from_products=self.from_products
        )

    def at(self, positions: Tensor) -> TokenPass:
        """The same for some of the positions."""
        return replace(
            self,
            labels_M=self.labels_M[positions],
            teacher_hidden_MD=None if self.teacher_hidden_MD is None else self.teacher_hidden_MD[positions],
            remembered=None if self.remembered is None else self.remembered.at(positions),
        )

    def alone(self, positions: Tensor) -> TokenPass:
        """The same for some of the positions, without the consistency."""
        terms = replace(self.terms, consistency=0.0)
        return replace(
            self, labels_M=self.labels_M[positions], terms=terms, teacher_hidden_MD=None, teacher=None, remembered=None
        )


def chunk_tokens_for(
    budget: int | None, hidden_MD: Tensor, head: LinearHead, *, teacher: bool, from_products: bool = False
) -> int:
    """Choose the tokens to a chunk so that all of its buffers together stay within a memory budget.

    Larger chunks make better matrix products: one of 512 tokens, d 512, with 32 000 columns took 190 ms in chunks of
    128, 157 in chunks of 256 (where the default lands, student and teacher together) and 144 in one piece, on one core of
    a Xeon at 2.5 GHz. With 128 256 columns chunks of 64 took 0.72 of the time of the 32 that 32 MiB hold, with 256 000 0.63 of
    that of 16: each chunk reads the whole head, so that the default never goes below `LEAST_TOKENS`. Chunks
    come out of equal size, as a small last one would waste the product. On a CPU a tile's scratch, 8 MiB or a single
    row, comes on top.

    Args:
        budget: Bytes; None for the default, 32 MiB on a CPU and 256 MiB on an accelerator, or what `LEAST_TOKENS` take.
        hidden_MD: The valid tokens, for their number, dtype and device.
        head: For V, and the soft cap, which wants its slope kept.
        teacher: Whether the teacher's logits stand beside the student's.
        from_products: Whether the products are all that is held, in the hidden states' dtype.

    Returns:
        Tokens to a chunk, at least 1.
    """
    narrow, wide = hidden_MD.dtype.itemsize, torch.promote_types(hidden_MD.dtype, torch.float32).itemsize
    on_cpu = hidden_MD.device.type == "cpu"
    sides = 2 if teacher else 1
    per_entry = sides * (narrow if from_products else wide)
    if narrow < wide and not from_products:  # the product before it is widened, the gradient after it is narrowed
        per_entry += (sides + 1) * narrow
    if not on_cpu and not from_products:  # the tile is the chunk: its scratch counts
        per_entry += wide * (1 + int(head.softcap is not None))
    least = 1
    if budget is None:
        budget, least = CPU_BUDGET if on_cpu else ACCELERATOR_BUDGET, LEAST_TOKENS
    largest = max(budget // (per_entry * head.vocabulary), least)
    chunks = max(-(-len(hidden_MD) // largest), 1)
    return max(-(-len(hidden_MD) // chunks), 1)


def token_loss(hidden_MD: Tensor, head: LinearHead, plan: TokenPass) -> tuple[Tensor, Tensor]:
    """Return the weighted sum of the token terms (on the graph) and the three of them, raw and detached."""
    if not torch.is_grad_enabled():  # a Function asks what requires a gradient, not whether anyone records it
        hidden_MD, head = hidden_MD.detach(), head.detach()
    loss, means_3 = _TokenLoss.apply(hidden_MD, head.weight_VD, head.bias_V, head, plan)
    return loss, means_3


class _TokenLoss(torch.autograd.Function):
    """Value and gradient in one forward; the backward only multiplies by what comes from above."""

    @staticmethod
    def forward(
        ctx: Any, hidden_MD: Tensor, weight_VD: Tensor, bias_V: Tensor | None, head: LinearHead, plan: TokenPass
    ) -> tuple[Tensor, Tensor]:
        gradients = _Gradients(hidden_MD, head, ctx.needs_input_grad[:3])
        means_3 = _meet_the_head(hidden_MD, head, plan, gradients) / plan.items
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
    """The gradients that are wanted, filled chunk by chunk: those of the plain sum, but for the logit scale."""

    def __init__(self, hidden_MD: Tensor, head: LinearHead, wanted: tuple[bool, ...]) -> None:
        wide = torch.promote_types(hidden_MD.dtype, torch.float32)
        want_hidden, want_weight, want_bias = wanted
        self.head = head
        self.hidden_MD = torch.empty_like(hidden_MD) if want_hidden else None
        self.weight_VD = torch.zeros_like(head.weight_VD, dtype=wide) if want_weight else None
        self.bias_V = hidden_MD.new_zeros(head.vocabulary, dtype=wide) if want_bias else None

    def all(self) -> tuple[Tensor | None, ...]:
        return self.hidden_MD, self.weight_VD, self.bias_V

    @property
    def wanted(self) -> bool:
        return any(gradient is not None for gradient in self.all())

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


def _meet_the_head(hidden_MD: Tensor, head: LinearHead, plan: TokenPass, gradients: _Gradients) -> Tensor:
    """Return the sums of the three terms over the tokens, and leave the gradients in ``gradients``."""
    tokens, width, teacher_MD = len(hidden_MD), head.vocabulary, plan.teacher_hidden_MD
    wide = torch.promote_types(hidden_MD.dtype, torch.float32)
    values_3M = hidden_MD.new_zeros(3, tokens, dtype=wide)
    chunk = plan.chunk(hidden_MD, head)
    scores = hidden_MD.new_empty(
        min(chunk, tokens) * (1 if teacher_MD is None else 2),
        width,
        dtype=hidden_MD.dtype if plan.from_products else wide,
    )
    for start in range(0, tokens, chunk):
        rows = slice(start, min(start + chunk, tokens))
        sides = _scores(hidden_MD[rows], head, None if teacher_MD is None else teacher_MD[rows], plan, scores)
        _terms_(sides, rows, head, plan, values_3M[:, rows], gradients.wanted)
        if gradients.wanted:
            logits_mV = sides[0] if sides[1] is None else sides[1]
            gradients.add(rows, hidden_MD[rows], logits_mV)
    return values_3M.sum(dim=1)


def _terms_(
    sides: tuple[Tensor, Tensor | None],
    rows: slice,
    head: LinearHead,
    plan: TokenPass,
    values_3m: Tensor,
    gradient: bool,
) -> None:
    """Fill in a chunk's values, and turn its scores or products into the gradient."""
    student_mV, teacher_mV = sides
    if plan.from_products:
        from balora.losses.triton_token_terms import token_terms_of_products_

        bias_V = (plan.teacher or head).bias_V
        labels_m = plan.labels_M[rows]
        token_terms_of_products_(student_mV, teacher_mV, head, bias_V, labels_m, plan.terms, values_3m, gradient)
        return
    tile = _tile_rows(student_mV)
    for first in range(0, len(student_mV), tile):
        here = slice(first, min(first + tile, len(student_mV)))
        part = slice(rows.start + here.start, rows.start + here.stop)
        memory = None if plan.remembered is None else plan.remembered.at(part)
        teacher = memory if teacher_mV is None else teacher_mV[here]
        token_terms_(student_mV[here], teacher, plan.labels_M[part], plan.terms, values_3m[:, here], gradient)


def _scores(
    hidden_mD: Tensor, head: LinearHead, teacher_mD: Tensor | None, plan: TokenPass, buffer: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Fill the buffer with a chunk's scores, or bare products, and return the student's part and the teacher's."""
    count = len(hidden_mD)
    student_mV, teacher_mV = buffer[:count], buffer[count : 2 * count]

    def fill(head: LinearHead, hidden_mD: Tensor, out_mV: Tensor) -> None:
        if plan.from_products:
            torch.mm(hidden_mD, head.weight_VD.T, out=out_mV)
        else:
            head.affine(hidden_mD, plan.terms.score_scale, out_mV)

    if teacher_mD is None:
        fill(head, hidden_mD, student_mV)
        return student_mV, None
    if plan.teacher is None:  # one product for both: the head is read, and packed, once
        fill(head, torch.cat([hidden_mD, teacher_mD]), buffer[: 2 * count])
    else:
        fill(head, hidden_mD, student_mV)
        fill(plan.teacher, teacher_mD, teacher_mV)
    return student_mV, teacher_mV


def _tile_rows(scores: Tensor) -> int:
    """Rows to a tile: 8 MiB of them, and all of the chunk on an accelerator, where each launch costs.

    Smaller ones (256 KiB to 2 MiB) were no faster on one thread and up to three times slower on two busy ones.
    """
    if scores.device.type != "cpu":
        return max(len(scores), 1)
    return max(_TILE_BYTES // max(scores.shape[1] * scores.element_size(), 1), 1)
