"""Fingerprints of tensors: three float64 sums each, compared with a tolerance.

A hash differs as soon as another machine rounds one product differently (by 1e-7). The sums accept such rounding and still
detect another decomposition (which differs by percents).
"""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

Fingerprint = dict[str, list[float]]
_PERIOD = 997  # prime, so that the ramp does not line up with rows or heads
_BLOCK = _PERIOD * 2**14
TOLERANCE = 1e-5


@torch.no_grad()
def fingerprint(named: Iterable[tuple[str, Tensor]]) -> Fingerprint:
    """Return the sum of squares, the sum, and a position-weighted sum of every tensor, in float64.

    Example:
        >>> fingerprint([("w", torch.tensor([3.0, 4.0]))])["w"][0]
        25.0
    """
    return {name: _sums(tensor) for name, tensor in named}


def first_mismatch(found: Mapping[str, list[float]], expected: Mapping[str, list[float]]) -> str | None:
    """Return the name of the first tensor that is missing, extra, or differs beyond rounding; None if all agree."""
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            return name
        energy = max(expected[name][0], found[name][0]) ** 0.5
        # The sum of squares is compared relative to itself, the signed sums relative to the norm times their weights.
        scales = (energy**2, energy * 10, energy * 10)
        if any(
            not abs(a - b) <= TOLERANCE * scale + 1e-12
            for a, b, scale in zip(found[name], expected[name], scales, strict=True)
        ):
            return name
    return None


def _sums(tensor: Tensor) -> list[float]:
    flat = tensor.detach().reshape(-1)
    if not flat.is_floating_point():
        flat = flat.view(torch.uint8)
    sums = torch.zeros(3, dtype=torch.float64, device=flat.device)
    ramp = (torch.arange(min(flat.numel(), _BLOCK), device=flat.device) % _PERIOD).double() / _PERIOD
    # In blocks: a float64 copy of a large embedding would be the largest tensor of the run.
    for block in flat.split(_BLOCK):
        wide = block.double()
        sums += torch.stack([wide @ wide, wide.sum(), wide @ ramp[: wide.numel()]])
    energy, total, ramped = sums.tolist()
    return [energy, total, ramped]
