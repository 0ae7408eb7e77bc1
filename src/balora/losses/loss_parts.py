"""Inputs and result of a loss: the settings and outputs that go in, and the parts that come out.

Shapes: M positions, d hidden size (D as a suffix), V vocabulary.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from balora.losses.spectral import SpectralBasis
from balora.losses.topk_teacher import TopKTeacher
from balora.models.lm_head import LinearHead

IGNORED = -100
"""Label of a position that has no target."""


TaskLoss = Literal["nll", "dft", "none"]
"""Loss of a target y: nll is -log p(y), dft is -sg[p(y)] log p(y) (Wu et al., 2025; sg: a constant), none is 0."""
ConsistencyTokens = Literal["all", "non_target"]
"""Tokens that the consistency compares: all, or all but the target, with the rest of both models renormalised."""


@dataclass(frozen=True)
class LossTerms:
    """Weights λ1, λ2, λ3 of the regularizers, and their settings T, K, k. A term of weight 0 is not computed.

    With ``across_processes`` the spectral term is that of the valid tokens of all processes. Every process must then call.
    """

    consistency: float = 0.0
    diversity: float = 0.0
    spectral: float = 0.0
    temperature: float = 2.0
    top_k: int = 20
    spectral_rank: int = 10
    across_processes: bool = False
    task_loss: TaskLoss = "nll"
    consistency_tokens: ConsistencyTokens = "all"

    def problems(self) -> list[str]:
        """Return one sentence for each value that is out of range."""
        weights = {"consistency": self.consistency, "diversity": self.diversity, "spectral": self.spectral}
        temperature, top_k, rank = self.temperature, self.top_k, self.spectral_rank
        checks = (
            [
                (0 <= weight < math.inf, f"The weight {name} must be a finite number, 0 or more, and it is {weight}.")
                for name, weight in weights.items()
            ]
            + [
                (0 < temperature < math.inf, f"temperature must be a positive number, and it is {temperature}."),
                (
                    not self.diversity or top_k >= 2,
                    f"top_k must be at least 2, as one candidate has no entropy, and it is {top_k}.",
                ),
                (not self.spectral or rank >= 1, f"spectral_rank must be at least 1, and it is {rank}."),
            ]
            + [
                (value in get_args(known), f"{name} must be one of {', '.join(get_args(known))}, and it is {value!r}.")
                for name, value, known in (
                    ("task_loss", self.task_loss, TaskLoss),
                    ("consistency_tokens", self.consistency_tokens, ConsistencyTokens),
                )
            ]
        )
        return [message for fits, message in checks if not fits]


@dataclass(frozen=True)
class HiddenStates:
    """Last hidden states of a model, and the head that turns them into logits.

    Attributes:
        hidden_MD: Hidden states, any floating dtype.
        head: The head; None for a teacher that has the student's head.
        spectral_basis: Factor of the student's head, made once for all batches. With None the loss makes it.
    """

    hidden_MD: Tensor
    head: LinearHead | None = None
    spectral_basis: SpectralBasis | None = None

    def at(self, positions: Tensor | slice) -> HiddenStates:
        """Return the hidden states of some positions, with the same head."""
        return HiddenStates(self.hidden_MD[positions], self.head, self.spectral_basis)


@dataclass(frozen=True)
class Logits:
    """Logits of a model, any floating dtype, scaled and soft-capped as the model does it."""

    logits_MV: Tensor


Outputs = HiddenStates | Logits
Teacher = HiddenStates | Logits | TopKTeacher


@dataclass(frozen=True)
class LossParts:
    """A loss and the terms it is made of.

    Attributes:
        loss: Weighted sum, a scalar on the graph.
        task: Cross-entropy in nats per item (squared error for regression), detached.
        consistency: Unweighted term, detached; None if its weight is 0, because it was not computed.
        diversity: Unweighted term, detached, or None.
        spectral: Unweighted term, detached, or None.
        variance: Unweighted term, detached, or None; classification only.
    """

    loss: Tensor
    task: Tensor
    consistency: Tensor | None = None
    diversity: Tensor | None = None
    spectral: Tensor | None = None
    variance: Tensor | None = None


def divisor(num_items: float | Tensor | None, tokens: int) -> float | Tensor:
    """Return the divisor of the token sums, which is never 0. A tensor stays on its device and is not read."""
    if isinstance(num_items, Tensor):
        num_items = num_items.reshape(())
        return torch.where(num_items > 0, num_items, 1)
    num_items = float(tokens) if num_items is None else num_items
    return num_items if num_items > 0 else 1.0
