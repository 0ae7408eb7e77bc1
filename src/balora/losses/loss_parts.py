"""What a loss hands back: the number to differentiate, and every term beside it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LossParts:
    """A loss and the terms it is made of.

    Attributes:
        loss: The weighted sum, a scalar on the graph.
        task: Cross-entropy, detached. Nats per item.
        consistency: The raw, unweighted term, detached; None where its weight is 0, as it was not computed then.
        diversity: Likewise.
        spectral: Likewise.
        variance: Likewise; classification only.
    """

    loss: Tensor
    task: Tensor
    consistency: Tensor | None = None
    diversity: Tensor | None = None
    spectral: Tensor | None = None
    variance: Tensor | None = None
