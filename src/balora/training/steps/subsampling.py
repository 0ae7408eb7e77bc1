"""Random subset of steps and sequences on which the consistency term is computed.

The expected gradient is unchanged: if the term is computed in one of every n steps, its weight is n times as large there; a
sequence drawn with probability f is weighted by 1 / f. Every draw depends only on the seed and the position in the run, so a
resumed run draws the same as an uninterrupted one.
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
    """Random draws of one run. Processes (``process`` is the rank) draw different sequences, but equally many.

    Example:
        >>> subsampler = Subsampler(RegularizationConfig(consistency_every=4), seed=1)
        >>> sum(subsampler.step_factor(step) for step in range(400))
        400.0
    """

    def __init__(self, config: RegularizationConfig, seed: int, process: int = 0) -> None:
        self.every = config.consistency_every
        self.keep_prob = config.consistency_fraction
        self._seed = seed
        self._process = process
        self._position = (-1, 0)

    def step_factor(self, step: int) -> float:
        """Return the factor of the consistency weight in an optimizer step: n in one of every n steps, else 0.

        Each block of n steps has its own draw, because a fixed step could coincide with a period of the data.
        """
        block, offset = divmod(step, self.every)
        return float(self.every) if offset == self._random("step", block).randrange(self.every) else 0.0

    def draw_sequences(self, step: int, micro_batch: int, count: int) -> Tensor | None:
        """Draw the sequences of a micro-batch that carry the term, ascending (int64); None for all sequences.

        Their number is f · B, rounded up or down at random, so that each sequence has probability f. All processes draw the
        same number, because their forwards may wait for each other.
        """
        if self.keep_prob == 1.0:
            return None
        number = math.floor(self.keep_prob * count + self._random("number", step, micro_batch).random())
        drawn = self._random("which", step, micro_batch, self._process).sample(range(count), min(number, count))
        return torch.tensor(sorted(drawn), dtype=torch.int64)

    def next_mask(self, step: int, count: int, row_keys: Sequence[bytes] | None) -> SequenceMask:
        """Return the mask of the next micro-batch, which has ``count`` sequences; call it once per micro-batch."""
        self._position = (step, self._position[1] + 1 if self._position[0] == step else 0)
        return SequenceMask(self.draw_sequences(*self._position, count), self.keep_prob, row_keys)

    def _random(self, *position: object) -> random.Random:
        return random.Random(" ".join(map(str, ("consistency", self._seed, *position))))


@dataclasses.dataclass(frozen=True)
class SequenceMask:
    """Selection of the sequences of a micro-batch that carry the consistency term."""

    rows: Tensor | None = None
    """Row numbers of the selected sequences, ascending; None for all."""
    keep_prob: float = 1.0
    """Probability with which each sequence was drawn."""
    row_keys: Sequence[bytes] | None = None
    """Keys of all rows of the micro-batch (`balora.teacher.row_keys`) for the teacher's caches; None if unknown."""
    real: int | None = None
    """Number of rows that count; the others, at the end, are repetitions (`repeated_rows`). None: all."""

    @property
    def is_empty(self) -> bool:
        """Return whether no sequence is selected."""
        return self.rows is not None and len(self.rows) == 0

    def over_tokens(self, mask_BT: Tensor) -> Tensor | None:
        """Return a boolean mask over the valid tokens (``mask_BT``): those of a selected sequence; None for all."""
        if self.rows is None:
            return None
        mask_B = mask_BT.new_zeros(len(mask_BT)).index_fill_(0, self.rows.to(mask_BT.device), True)
        return mask_B[:, None].expand_as(mask_BT)[mask_BT]


def select_rows(inputs: Mapping[str, Any], rows: Tensor | None, count: int) -> dict[str, Any]:
    """Select sequences of a batch: index every tensor that has ``count`` rows."""
    if rows is None or len(rows) == count:
        return dict(inputs)
    return {
        name: value[rows.to(value.device)] if isinstance(value, Tensor) and value.shape[:1] == (count,) else value
        for name, value in inputs.items()
    }
