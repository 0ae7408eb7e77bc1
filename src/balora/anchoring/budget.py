"""Weight of the anchors that follows a drift budget."""

from __future__ import annotations

import math
from typing import Any

WINDOW = 5
"""Optimizer steps whose mean drift is one observation: one wait for the device in five steps."""
RATE = 0.5
"""η: the weight's logarithm moves by this part of the logarithm of drift over budget."""
LARGEST_MOVE = math.log(2.0)
"""Largest change of the weight's logarithm at one observation."""
SMOOTHING = 0.5
"""Weight of the past in the moving average of the drift."""
BOUNDS = (1e-4, 1e5)
"""Least and largest weight."""


class BudgetWeight:
    r"""λ with :math:`\log \lambda \leftarrow \log \lambda + \mathrm{clip}(\eta (\log \bar L_A - \log \mathrm{budget}))`.

    Args:
        weight: The weight to start from.
        budget: Drift in nats per token; None for a constant weight.

    Example:
        >>> weight = BudgetWeight(1.0, budget=0.01)
        >>> weight.observe(0.04), weight.observe(0.04)  # the first window is the start of the run, and moves nothing
        (1.0, 2.0)
    """

    def __init__(self, weight: float, budget: float | None) -> None:
        self.value = weight
        self.budget = budget
        self._mean: float | None = None
        self._sum, self._count = 0.0, 0

    def observe(self, drift: float) -> float:
        """Take the mean drift of one window; return the new weight."""
        if self.budget is None or not math.isfinite(drift):
            return self.value
        first = self._mean is None
        drift = max(drift, 1e-12)
        self._mean = drift if self._mean is None else SMOOTHING * self._mean + (1.0 - SMOOTHING) * drift
        if not first:
            move = RATE * (math.log(self._mean) - math.log(self.budget))
            self.value *= math.exp(min(max(move, -LARGEST_MOVE), LARGEST_MOVE))
            self.value = min(max(self.value, BOUNDS[0]), BOUNDS[1])
        return self.value

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        return {"weight": self.value, "mean": self._mean}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up the state of a checkpoint."""
        self.value, self._mean = float(state["weight"]), state["mean"]
