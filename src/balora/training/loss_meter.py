"""Averages of every part and weight of the loss over the logging window, without a device sync until they are read."""

from collections.abc import Callable

import torch
from torch import Tensor

from balora.losses import LossParts
from balora.objective import BATCH_STATISTICS
from balora.regularization import WEIGHTS


class LossMeter:
    """Accumulator of micro-batches; the shares of one optimizer step add up to 1.

    Sums over items (task, consistency, diversity of generation) are added, because they are already divided by the items of
    the optimizer step. Batch statistics are averaged, weighted by the micro-batch's share.
    """

    def __init__(self, task: str) -> None:
        self._statistics = BATCH_STATISTICS[task]
        # The variance hinge is for classifiers; a generation log has no column for it.
        self._names = [name for name in WEIGHTS if name != "variance" or "variance" in self._statistics]
        self._sums: dict[str, Tensor | float] = {}
        self._steps: dict[str, float] = {}

    def add(self, parts: LossParts, weights: dict[str, float], share: float, **extra: Tensor) -> None:
        """Add one micro-batch; ``extra`` are further batch statistics to average."""
        self._add("task", parts.task, share)
        for name in self._names:
            self._add(f"{name}_weight", weights[name] * share, share)
            value = getattr(parts, name)
            if value is not None:
                value = value * share if name in self._statistics else value
                self._add(name, value, share)
            self._add(f"{name}_weighted", weights[name] * (0.0 if value is None else value), share)
        for name, value in extra.items():
            self._add(name, value.detach() * share, share)

    def add_part(self, name: str, value: Tensor | None, weight: float, share: float) -> None:
        """Add one micro-batch of a further part that is divided by the items of the optimizer step; None: not computed."""
        self._add(f"{name}_weight", weight * share, share)
        if value is not None:
            self._add(name, value.detach(), share)
        self._add(f"{name}_weighted", 0.0 if value is None else weight * value.detach(), share)

    def drain(self, average: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, float]:
        """Return the mean values since the last call, averaged over the processes by ``average``, and reset the meter.

        The values are ``task``, and for each part ``part`` (raw), ``part_weighted`` and ``part_weight``. A raw part is the
        mean over the steps that computed it, and absent if none did (weight 0). The weighted parts and the task add up to the
        loss.
        """
        if not self._sums:
            return {}
        means = [torch.as_tensor(self._sums[n] / self._steps[n], dtype=torch.float32).cpu() for n in self._sums]
        values = dict(zip(self._sums, average(torch.stack(means)).tolist(), strict=True))
        self._sums, self._steps = {}, {}
        return values

    def _add(self, name: str, value: Tensor | float, share: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps[name] = self._steps.get(name, 0.0) + share
