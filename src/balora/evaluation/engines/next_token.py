"""Choose the next token of each row, so that an answer depends on its own prompt and seed and not on its batch.

Shapes: B sequences, V vocabulary, T positions.
"""

import random
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor, TemperatureLogitsWarper, TopPLogitsWarper

from balora.errors import BALoraError


class NextToken(LogitsProcessor):
    """Draw the next token of each row with the row's own random numbers, and leave it as the only choice of a greedy search.

    ``model.generate(do_sample=True)`` draws all rows of a batch from one generator: the answer to a prompt then depends on the
    other prompts of its batch, and on the batch size.

    Args:
        seeds: Seed of each row. They are not used if ``temperature`` is 0.
        temperature: Sampling temperature; 0 leaves the scores as they are, for a greedy search.
        top_p: Probability mass of the tokens to draw from.
    """

    def __init__(self, seeds: Sequence[int], temperature: float, top_p: float = 1.0) -> None:
        self._random = [random.Random(seed) for seed in seeds]
        self._warpers: list[LogitsProcessor] = []
        self._samples = temperature > 0
        if self._samples:
            self._warpers.append(TemperatureLogitsWarper(float(temperature)))
            if top_p < 1:
                self._warpers.append(TopPLogitsWarper(top_p))

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:  # type: ignore[override]
        """Return the scores (B × V); with sampling, one token of each row has score 0 and the others minus infinity."""
        if torch.isnan(scores).any():
            raise BALoraError(
                "The model's outputs are NaN, so it writes no text. Its weights are damaged, or its numbers are too large for "
                "the dtype (float16 overflows easily; bfloat16 and float32 do not)."
            )
        if not self._samples:
            return scores
        warped_BV = scores.float()
        for warper in self._warpers:
            warped_BV = warper(input_ids, warped_BV)  # type: ignore[arg-type]
        # On the CPU in float64: the same number picks the same token on every device.
        cumulative_BV = warped_BV.softmax(-1).cpu().double().cumsum(-1)
        points_B = torch.tensor([row.random() for row in self._random], dtype=torch.float64) * cumulative_BV[:, -1]
        tokens_B1 = torch.searchsorted(cumulative_BV, points_B[:, None], right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(-1, tokens_B1.to(scores.device), 0.0)
