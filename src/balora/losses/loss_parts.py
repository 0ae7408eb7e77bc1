"""Result of a loss: the number to differentiate and the terms it is made of."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
