"""Averages of every part and every weight over the logging window, without a device sync until they are read."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from balora.losses import LossParts
from balora.objective import BATCH_STATISTICS
from balora.regularization import WEIGHTS


class LossMeter:
    """Adds up micro-batches; one optimizer step is a total share of 1.

    Sums over items (task, consistency, diversity of generation) come already divided by the items of the whole step and are
    added; batch statistics are averaged with the micro-batch's share.
    """

    def __init__(self, task: str) -> None:
        self._statistics = BATCH_STATISTICS[task]
        # The variance hinge is for classifiers; a generation log does not carry a column that is always 0.
        self._names = [name for name in WEIGHTS if name != "variance" or "variance" in self._statistics]
        self._sums: dict[str, Tensor | float] = {}
        self._steps: dict[str, float] = {}

    def add(self, parts: LossParts, weights: dict[str, float], share: float, **extra: Tensor) -> None:
        """Take in one micro-batch; ``extra`` are further batch statistics to average."""
        self._put("task", parts.task, share)
        for name in self._names:
            self._put(f"{name}_weight", weights[name] * share, share)
            raw = getattr(parts, name)
            value = 0.0 if raw is None else raw * share if name in self._statistics else raw
            if raw is not None:
                self._put(name, value, share)
            self._put(f"{name}_weighted", weights[name] * value, share)
        for name, value in extra.items():
            self._put(name, value.detach() * share, share)

    def drain(self, average: Callable[[Tensor], Tensor] = lambda values: values) -> dict[str, float]:
        """Mean values since the last call, then start afresh.

        Args:
            average: Averages a tensor over the processes.

        Returns:
            By name: ``task``, and for each part ``part`` (raw), ``part_weighted``, ``part_weight``. A raw part is the mean over
            the steps that computed it, and absent when none did (weight 0); the weighted parts and the task add up to the loss.
        """
        names = list(self._sums)
        if not names:
            return {}
        values = torch.stack(
            [torch.as_tensor(self._sums[n] / self._steps[n], dtype=torch.float32).cpu() for n in names]
        )
        values = average(values)
        self._sums, self._steps = {}, {}
        return dict(zip(names, values.tolist(), strict=True))

    def _put(self, name: str, value: Tensor | float, share: float) -> None:
        self._sums[name] = self._sums.get(name, 0.0) + value
        self._steps[name] = self._steps.get(name, 0.0) + share
