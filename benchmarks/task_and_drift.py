"""Loss on the task's test rows and drift on other rows: KL(pre-trained ‖ tuned) per token, with intervals over documents.

Shapes: M target positions of a row, d hidden size, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from balora.models.hidden_states import HiddenStateExtractor, valid_targets
from session_inputs import DEVICE, Inputs

CHUNK = 2048
"""Target positions whose logits exist at the same time."""


@dataclasses.dataclass(frozen=True)
class Documents:
    """Sums over the target tokens of each document, and their numbers."""

    sums: tuple[float, ...]
    tokens: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Mean over all tokens."""
        return sum(self.sums) / sum(self.tokens)

    @property
    def error(self) -> float:
        """Standard error of the mean if documents are drawn anew: that of a ratio of two sums."""
        count, mean = len(self.sums), self.mean
        squares = sum((s - mean * n) ** 2 for s, n in zip(self.sums, self.tokens, strict=True))
        return math.sqrt(squares * count / max(count - 1, 1)) / sum(self.tokens)

    def row(self) -> dict[str, Any]:
        """Return mean, standard error and 95 % interval, and each document's mean for paired comparisons."""
        mean, error = self.mean, self.error
        each = [float(f"{s / n:.5g}") for s, n in zip(self.sums, self.tokens, strict=True)]
        return {"mean": mean, "error": error, "low": mean - 1.96 * error, "high": mean + 1.96 * error,
                "tokens": sum(self.tokens), "each": each}  # fmt: skip


class TaskAndDrift:
    """Measures models of one family; keeps the pre-trained model's hidden states at the drift rows' targets.

    Args:
        inputs: Where the rows are.
        base: The pre-trained model, before it is adapted.
        counts: Number of rows for the loss and for the drift.
        batch: Rows of a batch.
    """

    def __init__(self, inputs: Inputs, base: nn.Module, counts: tuple[int, int], batch: int = 32) -> None:
        self.inputs, self.batch = inputs, batch
        self.task_rows = list(inputs.rows("test", counts[0]))
        self.drift_rows = list(inputs.rows("drift", counts[1]))
        self.before_MD, _ = self._hidden(base, self.drift_rows)
        head = HiddenStateExtractor(base).head()
        assert head is not None
        self.head = dataclasses.replace(head.detach(), weight_VD=head.weight_VD.detach().clone())

    @torch.no_grad()
    def loss(self, model: nn.Module) -> Documents:
        """Return the cross entropy of the task's targets."""
        hidden_MD, labels = self._hidden(model, self.task_rows)
        head, found = HiddenStateExtractor(model).head(), []
        assert head is not None
        flat_M = torch.cat(labels)
        for start in range(0, len(flat_M), CHUNK):
            logits_mV = head.logits(hidden_MD[start : start + CHUNK]).float()
            found.append(nn.functional.cross_entropy(logits_mV, flat_M[start : start + CHUNK], reduction="none"))
        return _by_document(torch.cat(found), labels)

    @torch.no_grad()
    def drift(self, model: nn.Module) -> Documents:
        """Return KL(pre-trained ‖ model) at the targets of the drift rows."""
        hidden_MD, labels = self._hidden(model, self.drift_rows)
        head, found = HiddenStateExtractor(model).head(), []
        assert head is not None
        for start in range(0, len(hidden_MD), CHUNK):
            now = head.logits(hidden_MD[start : start + CHUNK]).float().log_softmax(-1)
            before = self.head.logits(self.before_MD[start : start + CHUNK]).float().log_softmax(-1)
            found.append((before.exp() * (before - now)).sum(-1))
        return _by_document(torch.cat(found), labels)

    @torch.no_grad()
    def _hidden(self, model: nn.Module, rows: Sequence[Any]) -> tuple[Tensor, list[Tensor]]:
        """Return hidden states at all targets, in the order of the rows, and the targets of each row."""
        extractor = HiddenStateExtractor(model)
        was_training = model.training
        model.eval()
        hidden: list[Tensor] = [torch.empty(0)] * len(rows)
        targets: list[Tensor] = [torch.empty(0)] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
        for start in range(0, len(order), self.batch):
            chosen = order[start : start + self.batch]
            batch = self.inputs.collate([rows[i] for i in chosen])
            mask_BT, _ = valid_targets(batch["labels"], shift=True)
            hidden_BTD, _ = extractor.hidden_states(model, {**batch, "labels": None, "use_cache": False})
            shifted_BT = nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=-100)
            for line, i in enumerate(chosen):
                hidden[i] = hidden_BTD[line][mask_BT[line]]
                targets[i] = shifted_BT[line][mask_BT[line]]
        model.train(was_training)
        head = extractor.head()
        assert head is not None
        return torch.cat(hidden).to(head.weight_VD.dtype).to(DEVICE), targets


def _by_document(values_M: Tensor, labels: Sequence[Tensor]) -> Documents:
    sums = [float(part.double().sum()) for part in values_M.split([len(part) for part in labels])]
    return Documents(tuple(sums), tuple(len(part) for part in labels))
