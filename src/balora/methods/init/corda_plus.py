"""CorDA++: CorDA with two choices made from the data: which sample of it to believe, layer by layer, and how much rank.

From a transcription of the paper's equations 7-10; the original has not been seen (docs/reference/methods.md says what is open).
Shapes: O output features, I input features, R the smaller of the two.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from balora.methods.init.calibration import calibration_rows, input_covariances, rows_wanted
from balora.methods.init.corda import damped, start_oriented
from balora.methods.layers.peft_lora import lora_layers, with_ranks, wrap
from balora.methods.layers.weight_views import matrices
from balora.methods.options import choice, whole
from balora.methods.registry import AdaptOptions

OPTIONS = {
    "candidates": whole(8, "calibration samples to choose from", least=1),
    "samples": whole(32, "training rows in each", least=1),
    "compactness": choice("wc", "whose singular values compactness is taken of: W·C or C", ("wc", "c")),
}


def start_corda_plus(model: nn.Module, options: AdaptOptions) -> nn.Module:
    """Choose covariances and ranks, wrap again with those ranks, and start as CorDA does (knowledge-preserving).

    Returns:
        The model wrapped with uneven ranks.

    Raises:
        BALoraError: No data was given.

    Reference: Yang et al., CorDA++, 2025, eq. 7-10.
    """
    size = options.extra["samples"]
    rows = calibration_rows(options, rows_wanted(options.extra))
    weights = {matrix.name: matrix.weight_OI.float() for matrix in matrices(model)}
    best: dict[str, tuple[float, Tensor]] = {}
    for number in range(options.extra["candidates"]):
        for name, covariance_II in input_covariances(model, rows[number * size : (number + 1) * size]).items():
            values, log_pi = _spectrum(weights[name], covariance_II, options.extra["compactness"])
            score = selection_score(values, log_pi, options.rank)
            if name not in best or score < best[name][0]:
                best[name] = (score, covariance_II)
    covariances = {name: covariance for name, (_, covariance) in best.items()}
    spectra = {name: _spectrum(weights[name], covariances[name], options.extra["compactness"]) for name in weights}
    ranks = allocate_ranks(spectra, {name: tuple(w.shape) for name, w in weights.items()}, options.rank)
    adapted = wrap(model.unload(), with_ranks(options, ranks))  # type: ignore[operator]
    assert {name for name, _ in lora_layers(adapted)} == weights.keys()
    start_oriented(adapted, covariances, "kpm")
    return adapted


def _spectrum(weight_OI: Tensor, covariance_II: Tensor, of: str) -> tuple[Tensor, float]:
    """(σ of W·C in float64 on the CPU, descending; log π of the chosen matrix).

    C is damped as it is for the decomposition: of fewer tokens than inputs it is singular, and σ_min would be rounding.
    """
    covariance_II, _ = damped(covariance_II)
    product = torch.linalg.svdvals(weight_OI.float() @ covariance_II.to(weight_OI.device)).double().cpu()
    chosen = product if of == "wc" else torch.linalg.svdvals(covariance_II.float()).double().cpu()
    return product, log_compactness(chosen, weight_OI.shape[0])


def log_compactness(values: Tensor, outputs: int) -> float:
    r"""Logarithm of :math:`\pi(C) = \sqrt{d_{out}\, \sigma_{max}} / \sigma_{min}` (eq. 7); σ_min is kept above rounding."""
    largest = float(values[0])
    smallest = max(float(values[-1]), 1e-12 * largest, 1e-30)
    return 0.5 * math.log(outputs * max(largest, 1e-30)) - math.log(smallest)


def selection_score(values: Tensor, log_pi: float, rank: int) -> float:
    r"""What a candidate is judged by, the smaller the better (eq. 8): :math:`\log\pi \sum_{j \le r} \sigma_{-j} / \sigma_{max}`."""
    return log_pi * float(values[-rank:].sum() / values[0])


def allocate_ranks(
    spectra: Mapping[str, tuple[Tensor, float]], shapes: Mapping[str, tuple[int, ...]], rank: int
) -> dict[str, int]:
    r"""Give out ranks, one at a time, within the parameters that a uniform rank would take (eq. 9-10).

    Every layer starts with 1; the next goes to the layer with the smallest
    :math:`\log\pi(C) \cdot \sigma_{-r} / \sum_{k \le R - r} \sigma_k`.

    Args:
        spectra: By layer, σ of W·C (descending) and log π.
        shapes: By layer, (O, I).
        rank: The uniform rank whose parameters are the budget.

    Returns:
        Rank by layer, from 1 to min(O, I) − 1.

    Example:
        >>> flat, steep = torch.ones(4), torch.tensor([8.0, 1.0, 0.02, 0.01])
        >>> allocate_ranks({"flat": (flat, 1.0), "steep": (steep, 1.0)}, {"flat": (4, 4), "steep": (4, 4)}, rank=2)
        {'flat': 1, 'steep': 3}
    """
    price = {name: sum(shape) for name, shape in shapes.items()}
    left = sum(rank * price[name] for name in spectra) - sum(price.values())
    ranks = dict.fromkeys(spectra, 1)

    def cost(name: str) -> float:
        values, log_pi = spectra[name]
        r = ranks[name] + 1
        return log_pi * float(values[-r] / values[: len(values) - r].sum().clamp_min(1e-30))

    queue = [(cost(name), name) for name in spectra if min(shapes[name]) > 2]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if price[name] > left:
            continue
        ranks[name] += 1
        left -= price[name]
        if ranks[name] + 1 < min(shapes[name]):
            heapq.heappush(queue, (cost(name), name))
    return ranks
