"""The pre-trained model's outputs on the anchors, computed once: anchors are few and never change.

Kept are its last hidden states, from which the loss makes its exact logits chunk by chunk, or the logits themselves where the
head is not a known linear map. What needs more memory than allowed is kept as the likeliest tokens and the tail's mass.
Shapes: N positions of all rows, M positions of some rows, d hidden size, V vocabulary, X d or V.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from balora.losses import HiddenStates, LinearHead, Logits, TopKTeacher
from balora.losses.loss_parts import Teacher

TOP_K = 64
"""Tokens of each position that are kept where exact outputs need too much memory."""
BATCH = 16


def _from_process(rank: int, part: Any) -> Any:
    """Return what the process of a rank passes, in all processes."""
    parts = [part]
    dist.broadcast_object_list(parts, src=rank)
    return parts[0]


class AnchorTeacher:
    """Outputs of the pre-trained model on every anchor, in host memory.

    Args:
        compute: Returns the pre-trained model's outputs at the compared positions of some rows; hidden states with its head.
        counts: Compared positions of each row.
        memory: Bytes for exact outputs.
        temperature: T, for the top-k form.
        head_learns: Whether the student's head will differ from the pre-trained one, which is then kept too.
        progress: Called with the number of rows done.
        processes: Processes that divide the batches among them and exchange the results; all must make the same object.
            ``compute`` must not wait for the other processes, except in its first call.
    """

    def __init__(
        self,
        compute: Callable[[list[int]], HiddenStates | Logits],
        counts: Sequence[int],
        *,
        memory: int,
        temperature: float,
        head_learns: bool = False,
        progress: Callable[[int], None] = lambda done: None,
        processes: int = 1,
    ) -> None:
        self.temperature = temperature
        self._starts = [0]
        for count in counts:
            self._starts.append(self._starts[-1] + count)
        self._kind: type = HiddenStates
        self._head: LinearHead | None = None
        self._outputs_NX: Tensor | None = None
        self._topk: TopKTeacher | None = None
        parts: list[Tensor | TopKTeacher | None] = []
        exact = None
        own = dist.get_rank() if processes > 1 else 0
        for number, first in enumerate(range(0, len(counts), BATCH)):
            rows = list(range(first, min(first + BATCH, len(counts))))
            if number and number % processes != own:  # the first batch also tells each process what to keep
                parts.append(None)
                continue
            outputs = compute(rows)
            values = outputs.hidden_MD if isinstance(outputs, HiddenStates) else outputs.logits_MV
            if exact is None:
                exact = self._starts[-1] * values.shape[1] * values.element_size() <= memory
                self._kind = type(outputs)
                if isinstance(outputs, HiddenStates) and head_learns:
                    assert outputs.head is not None
                    self._head = outputs.head.detach().clone()
            parts.append(values.detach().cpu() if exact else self._reduced(outputs))
            progress(rows[-1] + 1)
        if processes > 1:  # after the forwards, so that no process waits for those of another
            parts = [_from_process(number % processes, part) for number, part in enumerate(parts)]
        self.exact = bool(exact)
        if self.exact:
            self._outputs_NX = torch.cat([part for part in parts if isinstance(part, Tensor)])
        else:
            self._topk = TopKTeacher.concatenated([part for part in parts if isinstance(part, TopKTeacher)])

    def at(self, rows: Sequence[int], device: torch.device) -> Teacher:
        """Return the outputs at the compared positions of some rows, in their order."""
        if self._topk is not None:
            index = torch.cat([torch.arange(*self._span(row)) for row in rows])
            found = self._topk.at(index)
            return found.map(lambda tensor: tensor.to(device))
        assert self._outputs_NX is not None
        outputs_MX = torch.cat([self._outputs_NX[slice(*self._span(row))] for row in rows]).to(device)
        return HiddenStates(outputs_MX, self._head) if self._kind is HiddenStates else Logits(outputs_MX)

    def nbytes(self) -> int:
        """Return the bytes that are kept."""
        if self._outputs_NX is not None:
            return self._outputs_NX.nbytes
        assert self._topk is not None
        return sum(t.nbytes for t in (self._topk.tokens_MK, self._topk.log_probs_MK, self._topk.log_tail_M))

    def _span(self, row: int) -> tuple[int, int]:
        return self._starts[row], self._starts[row + 1]

    def _reduced(self, outputs: HiddenStates | Logits) -> TopKTeacher:
        if isinstance(outputs, Logits):
            found = TopKTeacher.of_logits(outputs.logits_MV, top_k=TOP_K, temperature=self.temperature)
        else:
            assert outputs.head is not None
            found = TopKTeacher.of(outputs.hidden_MD, outputs.head, top_k=TOP_K, temperature=self.temperature)
        # float32: K of them in half precision would save little beside the tokens
        return found.map(lambda tensor: (tensor.float() if tensor.is_floating_point() else tensor.int()).cpu())
