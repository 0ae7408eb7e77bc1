"""Weight of a term that follows a drift budget: of the anchors, or of the consistency term."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from balora.errors import BALoraError

WINDOW = 5
"""Least number of optimizer steps whose mean drift is one observation: one wait for the device in five steps."""
OBSERVATIONS = 40
"""Largest number of windows of a run; a longer run has longer windows, whose means are less noisy."""
RATE = 0.4
"""η: the weight's logarithm moves by this part of the relative distance of the drift from its target."""
ACCELERATION = 1.4
"""η grows by this factor with each move down in a row while the drift is below half of its target; else it is the first. Moves
up are never faster: when the learning rate has fallen, a drift that was pushed too low cannot come back."""
FAR = 0.5
"""Relative distance from which a drift is far below its target."""
LARGEST_RATE = 2.0
"""Largest η: a weight that starts a thousand times too high is reached in a dozen windows."""
LARGEST_DISTANCE = 1.0
"""Largest relative distance that one observation counts: a move up is a factor of at most exp(0.4) = 1.49."""
SMOOTHING = 0.6
"""Weight that the past keeps in the moving average of the drift when an observation comes."""
MARGINS = (3.0, 2.0)
"""Target over the budget at the start and at the end of a run, in a straight line between. A part of the drift falls away while
the learning rate falls. The end of the run takes the rest off (`balora.anchoring.correction`): it can
lower a drift, and cannot raise one."""
BOUNDS = (1e-3, 1e3)
"""Least and largest weight: beyond them the loss is that of one side alone, and Adam's steps no longer change."""


class BudgetWeight:
    r"""λ that follows a budget for the drift at the end of the run.

    .. math:: \log \lambda \leftarrow \log \lambda + \eta \, \mathrm{clip}\big(\bar L_A / t - 1\big), \qquad
              t = (3 - \mathrm{progress}) \cdot \mathrm{budget}

    The distance is relative and not a logarithm: observations are noisy, and the logarithm of a noisy mean is too low on average.

    Args:
        weight: The weight to start from.
        budget: Drift in nats per token; None for a constant weight.

    Example:
        >>> weight = BudgetWeight(1.0, budget=0.01)
        >>> weight.observe(0.04)  # the first window is the start of the run, and moves nothing
        1.0
        >>> round(weight.observe(0.04), 2)
        1.14
    """

    def __init__(self, weight: float, budget: float | None) -> None:
        self.value = weight
        self.budget = budget
        self._sum = self._count = 0.0  # of the moving average
        self._observed = False
        self._rate = RATE
        self._seen: list[tuple[int, Tensor]] = []

    @property
    def mean(self) -> float | None:
        """Moving average of the drift; None before the first window is complete."""
        return self._sum / self._count if self._count else None

    def advance(self, step: int, mean_over_processes: Callable[[Tensor], Tensor], total_steps: int = 0) -> float:
        """Return the weight of a step, which follows the mean over the window before it; all its micro-batches have the same.

        The parts of all micro-batches of a step add up to its term; those of all processes have it as their mean.
        """
        window = max(WINDOW, total_steps // OBSERVATIONS)
        if self._seen and step // window != self._seen[0][0] // window:
            steps = len({at for at, _ in self._seen})  # the term may be taken in some of the steps only
            total = torch.stack([value for _, value in self._seen]).sum()
            progress = step / total_steps if total_steps else 1.0
            self.observe(float(mean_over_processes(total[None])) / steps, progress)
            self._seen = []
        return self.value

    def add(self, step: int, term: Tensor) -> None:
        """Take the part of the term of one micro-batch."""
        if self.budget is not None:
            self._seen.append((step, term.detach().float()))

    def observe(self, drift: float, progress: float = 0.0) -> float:
        """Take the mean drift of one window, and the part of the run that is over; return the new weight."""
        if self.budget is None or not math.isfinite(drift):
            return self.value
        self._sum, self._count = SMOOTHING * self._sum + drift, SMOOTHING * self._count + 1.0
        if self._observed:
            margin = MARGINS[0] + (MARGINS[1] - MARGINS[0]) * min(progress, 1.0)
            distance = self._sum / self._count / (margin * self.budget) - 1.0
            self._rate = min(self._rate * ACCELERATION, LARGEST_RATE) if distance <= -FAR else RATE
            self.value *= math.exp(self._rate * min(distance, LARGEST_DISTANCE))
            self.value = min(max(self.value, BOUNDS[0]), BOUNDS[1])
        self._observed = True
        return self.value

    def include(self, drift: float, count: float) -> None:
        """Add a measurement that is worth ``count`` windows to the moving average; the weight follows at the next window."""
        if self.budget is not None and math.isfinite(drift):
            self._sum, self._count = self._sum + count * drift, self._count + count

    def state(self) -> dict[str, Any]:
        """Return what a resumed run needs."""
        seen = [(step, float(term)) for step, term in self._seen]
        return {
            "weight": self.value,
            "sum": self._sum,
            "count": self._count,
            "observed": self._observed,
            "rate": self._rate,
            "seen": seen,
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Take up the state of a checkpoint.

        Raises:
            BALoraError: An older version wrote the state.
        """
        if missing := self.state().keys() - state.keys():
            raise BALoraError(
                f"The checkpoint's state of the drift budget is an older version's (it lacks {min(missing)}). Start the run in "
                "another output folder, or finish it with the version that began it."
            )
        self.value = float(state["weight"])
        self._sum, self._count = float(state["sum"]), float(state["count"])
        self._observed, self._rate = bool(state["observed"]), float(state["rate"])
        self._seen = [(int(step), torch.tensor(term, device=device)) for step, term in state["seen"]]
