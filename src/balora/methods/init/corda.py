"""CorDA and CorDA++: decompose each weight together with the covariance of the layer's inputs.

CorDA moves the largest or the smallest components into the adapter. CorDA++ also chooses, for each layer, a covariance among
several samples and a rank. It follows a transcription of the paper's equations 7-10; docs/reference/methods.md lists the open
questions.
Shapes: O output features, I input features, R adapter rank.
"""

import heapq
import math
from collections.abc import Mapping

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.init.calibration import calibration_rows, input_covariances, sample_size
from balora.methods.init.residual_init import check_residual_targets, store_all_residuals
from balora.methods.initial_state import NOTICES
from balora.methods.layers.peft_lora import lora_layers, with_ranks, wrap_lora
from balora.methods.layers.weight_views import weight_matrices
from balora.methods.method import AdaptOptions

_DAMPING = 0.01
_MAX_INVERSE_ERROR = 0.05


def check_corda(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse weights that cannot become residuals, and stacks of experts: the inputs of one expert cannot be recorded."""
    check_residual_targets(model, options)
    stack = next((name for name, layer in lora_layers(model) if isinstance(layer, ParamWrapper)), None)
    if stack is not None:
        raise BALoraError(
            f"{stack} stacks the weights of several experts, and the inputs of each expert cannot be recorded. Name the layers "
            "to adapt in target_modules, such as [q_proj, k_proj, v_proj, o_proj]."
        )


def initialize_corda(model: nn.Module, options: AdaptOptions) -> None:
    """Move the chosen components of every target weight into its adapter."""
    covariances = input_covariances(model, calibration_rows(options, model))
    _set_factors(model, covariances, options.extra["mode"])


def initialize_corda_plus(model: nn.Module, options: AdaptOptions) -> nn.Module:
    """Choose covariances and ranks, add a new adapter with these ranks, and initialize it as CorDA does in mode ``kpm``.

    Reference: Yang et al., CorDA++, 2025, eq. 7-10.
    """
    rows = calibration_rows(options, model)
    size = sample_size(options.extra, len(rows))
    notices = getattr(model, NOTICES, ())
    weights = {matrix.name: matrix.weight_OI.float() for matrix in weight_matrices(model)}
    best: dict[str, tuple[float, Tensor]] = {}
    for number in range(min(options.extra["candidates"], len(rows))):
        for name, covariance_II in input_covariances(model, rows[number * size : (number + 1) * size]).items():
            values, log_pi = _spectrum(weights[name], covariance_II, options.extra["compactness"])
            score = selection_score(values, log_pi, options.rank)
            if name not in best or score < best[name][0]:
                best[name] = (score, covariance_II)
    covariances = {name: covariance for name, (_, covariance) in best.items()}
    spectra = {name: _spectrum(weights[name], covariances[name], options.extra["compactness"]) for name in weights}
    ranks = allocate_ranks(spectra, {name: tuple(w.shape) for name, w in weights.items()}, options.rank)
    adapted = wrap_lora(model.unload(), with_ranks(options, ranks))  # type: ignore[operator]
    setattr(adapted, NOTICES, notices)
    assert {name for name, _ in lora_layers(adapted)} == weights.keys()
    _set_factors(adapted, covariances, "kpm")
    return adapted


@torch.no_grad()
def _set_factors(model: nn.Module, covariances: dict[str, Tensor], mode: str) -> None:
    """Move the components chosen by ``mode`` (``kpm`` or ``ipm``) into the adapter, given C (I × I) by layer name."""
    for matrix in weight_matrices(model):
        weight_OI = matrix.weight_OI.float()
        left, values, right = decompose_with_covariance(weight_OI, covariances[matrix.name])
        chosen = slice(-matrix.rank, None) if mode == "kpm" else slice(0, matrix.rank)
        root_R = (values[chosen] / matrix.scaling).sqrt()
        matrix.set_factors(root_R[:, None] * right[chosen], left[:, chosen] * root_R)
    store_all_residuals(model)


def decompose_with_covariance(weight_OI: Tensor, covariance_II: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return the context-oriented decomposition of a weight: U, S (descending) and VᵀC⁻¹, float32.

    .. math:: W C = U S V^\top, \quad W = U S (V^\top C^{-1})

    C is damped until it can be inverted accurately: :math:`C + \lambda \overline{C_{ii}} I`, λ = 0.01, 0.02, 0.04, …

    Reference: Yang et al., CorDA, 2024, eq. 1-5.
    """
    covariance_II, inverse_II = _damped_with_inverse(covariance_II.to(weight_OI.device))
    left, values, right = torch.linalg.svd(weight_OI.float() @ covariance_II, full_matrices=False)
    return left, values, right @ inverse_II


def _damped_with_inverse(covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    """Return the damped C and its inverse."""
    identity = torch.eye(len(covariance_II), device=covariance_II.device)
    damping = _DAMPING * covariance_II.diagonal().mean().clamp_min(1e-12)
    while True:
        damped_II = covariance_II + damping * identity
        inverse = torch.linalg.inv(damped_II)
        if torch.dist(damped_II @ inverse, identity) < _MAX_INVERSE_ERROR:
            return damped_II, inverse
        damping *= 2


def _spectrum(weight_OI: Tensor, covariance_II: Tensor, compactness: str) -> tuple[Tensor, float]:
    """Return σ of W·C (float64 on the CPU, descending) and log π of W·C (``wc``) or C (``c``).

    C is damped as in the decomposition: with fewer tokens than inputs it is singular, and σ_min would be rounding noise.
    """
    covariance_II, _ = _damped_with_inverse(covariance_II)
    product = torch.linalg.svdvals(weight_OI.float() @ covariance_II.to(weight_OI.device)).double().cpu()
    chosen = product if compactness == "wc" else torch.linalg.svdvals(covariance_II.float()).double().cpu()
    return product, log_compactness(chosen, weight_OI.shape[0])


def log_compactness(values: Tensor, outputs: int) -> float:
    r"""Return the logarithm of :math:`\pi(C) = \sqrt{d_{out}\, \sigma_{max}} / \sigma_{min}` (eq. 7).

    σ_min has a lower bound of 1e-12 σ_max, which keeps rounding noise out.
    """
    largest = float(values[0])
    smallest = max(float(values[-1]), 1e-12 * largest, 1e-30)
    return 0.5 * math.log(outputs * max(largest, 1e-30)) - math.log(smallest)


def selection_score(values: Tensor, log_pi: float, rank: int) -> float:
    r"""Return the score of a candidate (eq. 8), lower is better: :math:`\log\pi \sum_{j \le r} \sigma_{-j} / \sigma_{max}`."""
    return log_pi * float(values[-rank:].sum() / values[0])


def allocate_ranks(
    spectra: Mapping[str, tuple[Tensor, float]], shapes: Mapping[str, tuple[int, ...]], rank: int
) -> dict[str, int]:
    r"""Distribute ranks over the layers within the number of parameters that a uniform rank needs (eq. 9-10).

    Every layer starts with rank 1. The next rank goes to the layer with the smallest
    :math:`\log\pi(C) \cdot \sigma_{-r} / \sum_{k \le R - r} \sigma_k`, where R is the smaller side of the layer and r < R.
    ``spectra`` has σ of W·C (descending) and log π by layer, ``shapes`` has (O, I) by layer, and ``rank`` is the uniform rank.

    Example:
        >>> flat, steep = torch.ones(4), torch.tensor([8.0, 1.0, 0.02, 0.01])
        >>> allocate_ranks({"flat": (flat, 1.0), "steep": (steep, 1.0)}, {"flat": (4, 4), "steep": (4, 4)}, rank=2)
        {'flat': 1, 'steep': 3}
    """
    price = {name: sum(shape) for name, shape in shapes.items()}
    budget = sum(rank * price[name] for name in spectra) - sum(price.values())
    ranks = dict.fromkeys(spectra, 1)

    def cost(name: str) -> float:
        values, log_pi = spectra[name]
        r = ranks[name] + 1
        return log_pi * float(values[-r] / values[: len(values) - r].sum().clamp_min(1e-30))

    queue = [(cost(name), name) for name in spectra if min(shapes[name]) > 2]
    heapq.heapify(queue)
    while queue:
        _, name = heapq.heappop(queue)
        if price[name] > budget:
            continue
        ranks[name] += 1
        budget -= price[name]
        if ranks[name] + 1 < min(shapes[name]):
            heapq.heappush(queue, (cost(name), name))
    return ranks
