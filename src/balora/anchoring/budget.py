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
"""η: the weight's logarithm moves by this part of the logarithm of drift over target."""
LARGEST_MOVE = math.log(1.5)
"""Largest change of the weight's logarithm at one observation."""
SMOOTHING = 0.5
"""Weight of the past in the moving average of the drift."""
BOUNDS = (1e-3, 1e3)
"""Least and largest weight: beyond them the loss is that of one side alone, and Adam's steps no longer change."""
HEAT = 1.0
"""Drift above the budget, as a part of it, that is allowed at the largest learning rate: it falls away with the rate."""


class BudgetWeight:
    r"""λ that follows a budget for the drift at the end of the run.

    .. math:: \log \lambda \leftarrow \log \lambda + \mathrm{clip}\big(\eta (\log \bar L_A - \log t)\big), \qquad
              t = \mathrm{budget} \cdot (1 + (\mathrm{rate} - \mathrm{last\ rate}) / \mathrm{largest\ rate})

    Large steps keep the model away from its minimum, so a part of the drift falls away while the learning rate falls. The
    target t therefore begins at twice the budget and ends at it.

    Args:
        weight: The weight to start from.
        budget: Drift in nats per token; None for a constant weight.

    Example:
        >>> weight = BudgetWeight(1.0, budget=0.01)
        >>> weight.observe(0.04), weight.observe(0.04)  # the first window is the start of the run, and moves nothing
        (1.0, 1.5)
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

    def advance(self, step: int, mean_over_processes: Callable[[Tensor], Tensor], heat: float = 0.0) -> float:
        """Return the weight of a step, which follows the mean over the window before it; all its micro-batches have the same.

        ``heat`` is the learning rate that will have fallen away by the end, as a part of the largest. The parts of all
        micro-batches of a step add up to its term; those of all processes have it as their mean.
        """
        if self._seen and step // WINDOW != self._seen[0][0] // WINDOW:
            steps = len({at for at, _ in self._seen})  # the term may be taken in some of the steps only
            total = torch.stack([value for _, value in self._seen]).sum()
            self.observe(float(mean_over_processes(total[None])) / steps, heat)
            self._seen = []
        return self.value

    def add(self, step: int, term: Tensor) -> None:
        """Take the part of the term of one micro-batch."""
        if self.budget is not None:
            self._seen.append((step, term.detach().float()))

    def observe(self, drift: float, heat: float = 0.0) -> float:
        """Take the mean drift of one window and its learning rate as a part of the largest; return the new weight."""
        if self.budget is None or not math.isfinite(drift):
            return self.value
        first = self._mean is None
        drift = max(drift, 1e-12)
        self._mean = drift if self._mean is None else SMOOTHING * self._mean + (1.0 - SMOOTHING) * drift
        if not first:
            target = self.budget * (1.0 + HEAT * heat)
            move = RATE * (math.log(self._mean) - math.log(target))
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
