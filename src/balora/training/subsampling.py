"""Which steps and which sequences the consistency term is taken over, where it is not all of them.

Both draws leave the expected gradient as it is: one step in n carries the term n times as strong, a sequence that is
drawn with probability f carries it 1 / f times. They depend on the seed and on the place in the run alone, so a resumed
run draws what the uninterrupted one would have drawn.
Shapes: B sequences.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from balora.regularization import RegularizationConfig


class Subsampler:
    """The draws of one run.

    Args:
        config: ``consistency_every`` and ``consistency_fraction``.
        seed: The run's.
        process: Number of this process: each draws sequences of its own, but as many as the others.

    Example:
        >>> draws = Subsampler(RegularizationConfig(consistency_every=4), seed=1)
        >>> sum(draws.strength(step) for step in range(400))
        400.0
    """

    def __init__(self, config: RegularizationConfig, seed: int, process: int = 0) -> None:
        self.every = config.consistency_every
        self.keep = config.consistency_fraction
        self._seed = seed
        self._process = process
        self._place = (-1, 0)

    def strength(self, step: int) -> float:
        """What the consistency weight is multiplied with in an optimizer step: n in one of every n steps, else 0.

        Which one is drawn anew in each block of n steps: a fixed one could fall in with the order of the data.
        """
        block, place = divmod(step, self.every)
        return float(self.every) if place == self._random("step", block).randrange(self.every) else 0.0

    def sequences(self, step: int, micro_batch: int, count: int) -> Tensor | None:
        """The sequences of a micro-batch that carry the term, ascending (int64); None for all of them.

        As many as f · B, rounded up or down at random so that it is f · B on average: each sequence has probability f.
        The number is the same on all processes, as their forwards may wait for each other.
        """
        if self.keep == 1.0:
            return None
        share = self.keep * count
        number = math.floor(share + self._random("number", step, micro_batch).random())
        drawn = self._random("which", step, micro_batch, self._process).sample(range(count), min(number, count))
        return torch.tensor(sorted(drawn), dtype=torch.int64)

    def held(self, step: int, count: int, keys: Sequence[bytes] | None) -> SequenceMask:
        """The next micro-batch's, of ``count`` sequences, in an optimizer step; called once for each."""
        self._place = (step, self._place[1] + 1 if self._place[0] == step else 0)
        return SequenceMask(self.sequences(*self._place, count), self.keep, keys)

    def _random(self, *place: object) -> random.Random:
        return random.Random(" ".join(map(str, ("consistency", self._seed, *place))))


@dataclasses.dataclass(frozen=True)
class SequenceMask:
    """Which sequences of a micro-batch are held to their teacher, and what it may remember them by."""

    rows: Tensor | None = None
    """Their numbers, ascending; None for all."""
    keep: float = 1.0
    """The probability with which each was drawn."""
    keys: Sequence[bytes] | None = None
    """One for each row the micro-batch is made of, where the data pipeline gave them."""

    @property
    def nobody(self) -> bool:
        """Whether none is."""
        return self.rows is not None and len(self.rows) == 0

    def numbers(self, count: int) -> list[int]:
        """The rows as plain numbers, of ``count`` that there are."""
        return list(range(count)) if self.rows is None else self.rows.tolist()

    def mask(self, count: int, device: torch.device) -> Tensor | None:
        """True for each sequence that is drawn; None for all of them."""
        if self.rows is None:
            return None
        return torch.zeros(count, dtype=torch.bool, device=device).index_fill_(0, self.rows.to(device), True)


def select_rows(inputs: Mapping[str, Any], rows: Tensor | None, count: int) -> dict[str, Any]:
    """A batch's inputs for some of its sequences: every tensor with ``count`` rows is cut down to them."""
    if rows is None or len(rows) == count:
        return dict(inputs)
    return {
        name: value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in inputs.items()
    }
