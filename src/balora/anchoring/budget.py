"""Weight of a term that follows a drift budget: of the anchors, or of the consistency term."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

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
        self._seen: list[tuple[int, Tensor]] = []

    @property
    def mean(self) -> float | None:
        """Moving average of the drift; None before the first window is complete."""
        return self._mean

    def advance(self, step: int, mean_over_processes: Callable[[Tensor], Tensor]) -> float:
        """Return the weight of a step, which follows the mean over the window before it; all its micro-batches have the same.

        The parts of all micro-batches of a step add up to its term; those of all processes have it as their mean.
        """
        if self._seen and step // WINDOW != self._seen[0][0] // WINDOW:
            steps = len({at for at, _ in self._seen})  # the term may be taken in some of the steps only
            total = torch.stack([value for _, value in self._seen]).sum()
            self.observe(float(mean_over_processes(total[None])) / steps)
            self._seen = []
        return self.value

    def add(self, step: int, term: Tensor) -> None:
        """Take the part of the term of one micro-batch."""
        if self.budget is not None:
            self._seen.append((step, term.detach().float()))

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
        seen = [(step, float(term)) for step, term in self._seen]
        return {"weight": self.value, "mean": self._mean, "seen": seen}

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the state of a checkpoint."""
        self.value, self._mean = float(state["weight"]), state["mean"]
        self._seen = [(int(step), torch.tensor(term, device=device)) for step, term in state["seen"]]
