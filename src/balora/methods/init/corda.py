"""CorDA: decompose each weight in the light of the inputs it meets; the adapter takes the most or the least of it.

Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import torch
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.init.calibration import calibration_rows, input_covariances, rows_wanted
from balora.methods.init.residual_init import refuse_unsuitable
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import matrices
from balora.methods.options import choice, whole
from balora.methods.registry import AdaptOptions

OPTIONS = {
    "mode": choice(
        "kpm",
        "kpm (knowledge-preserving: the r smallest components learn) or ipm (instruction-previewed: the r largest)",
        ("kpm", "ipm"),
    ),
    "samples": whole(256, "training rows over which the inputs' covariance is taken", least=1),
}
_DAMPING = 0.01
_MOST_ERROR = 0.05


def check_corda(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse stacks of experts: what each of them meets cannot be seen from outside.

    Raises:
        BALoraError: There is one, or a weight cannot be shifted.
    """
    refuse_unsuitable(model, options)
    stack = next((name for name, layer in lora_layers(model) if isinstance(layer, ParamWrapper)), None)
    if stack is not None:
        raise BALoraError(
            f"{stack} stacks the weights of several experts, and what each of them meets cannot be seen. Name the layers to "
            "adapt in target_modules, such as [q_proj, k_proj, v_proj, o_proj]."
        )


def start_corda(model: nn.Module, options: AdaptOptions) -> None:
    """Move the chosen components of every target into its factors.

    Raises:
        BALoraError: No data was given.
    """
    covariances = input_covariances(model, calibration_rows(options, rows_wanted(options.extra)))
    start_oriented(model, covariances, options.extra["mode"])


@torch.no_grad()
def start_oriented(model: nn.Module, covariances: dict[str, Tensor], mode: str) -> None:
    """Move the chosen components of every target into its factors.

    Args:
        model: Wrapped.
        covariances: C by layer name, I × I.
        mode: ``kpm`` or ``ipm``.
    """
    for matrix in matrices(model):
        weight_OI = matrix.weight_OI.float()
        left, values, right = oriented(weight_OI, covariances[matrix.name])
        kept = slice(-matrix.rank, None) if mode == "kpm" else slice(0, matrix.rank)
        root_R = (values[kept] / matrix.scaling).sqrt()
        matrix.set_factors(root_R[:, None] * right[kept], left[:, kept] * root_R)
        matrix.shift(weight_OI)


def oriented(weight_OI: Tensor, covariance_II: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Context-oriented decomposition: of W·C, mapped back.

    .. math:: W C = U S V^\top, \quad W = U S (V^\top C^{-1})

    C is damped until its inverse is one: :math:`C + \lambda \overline{C_{ii}} I`, λ = 0.01, 0.02, 0.04, …

    Args:
        weight_OI: W.
        covariance_II: C.

    Returns:
        (U, S descending, VᵀC⁻¹), float32.

    Reference: Yang et al., CorDA, 2024, eq. 1-5.
    """
    covariance_II, inverse_II = damped(covariance_II.to(weight_OI.device))
    left, values, right = torch.linalg.svd(weight_OI.float() @ covariance_II, full_matrices=False)
    return left, values, right @ inverse_II


def damped(covariance_II: Tensor) -> tuple[Tensor, Tensor]:
    """C with enough added to its diagonal that its inverse is one, and that inverse."""
    identity = torch.eye(len(covariance_II), device=covariance_II.device)
    damping = _DAMPING * covariance_II.diagonal().mean().clamp_min(1e-12)
    while True:
        sum_II = covariance_II + damping * identity
        inverse = torch.linalg.inv(sum_II)
        if torch.dist(sum_II @ inverse, identity) < _MOST_ERROR:
            return sum_II, inverse
        damping *= 2
