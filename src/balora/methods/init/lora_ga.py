"""LoRA-GA: initialize the adapter so that its first step follows the gradient of full fine-tuning.

Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.init.calibration import calibration_rows, num_calibration_rows, weight_gradients
from balora.methods.init.residual_init import check_residual_targets
from balora.methods.layers.peft_lora import lora_layers, weight_shape
from balora.methods.method import AdaptOptions


def initialize_lora_ga(model: nn.Module, options: AdaptOptions) -> None:
    """Set the factors from the gradient on the calibration rows, and subtract their product from the weights.

    Raises:
        BALoraError: There is no calibration data, or a layer has no gradient.
    """
    gradients = weight_gradients(model, calibration_rows(options, num_calibration_rows(options.extra)))
    with torch.no_grad():
        for matrix, gradient_OI in gradients:
            matrix.set_factors(*gradient_factors(gradient_OI, matrix.rank, options.extra["gamma"]))
            matrix.store_residual()


def check_lora_ga(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse a rank above half the smaller side of a target: the method needs 2r singular directions.

    Raises:
        BALoraError: The rank is too high, or a weight cannot become a residual.
    """
    check_residual_targets(model, options)
    for name, layer in lora_layers(model):
        smaller = min(weight_shape(layer))
        if 2 * options.rank > smaller:
            raise BALoraError(
                f"Method loraga needs 2r = {2 * options.rank} singular directions of each gradient, and {name} has {smaller}. "
                f"Lower method.rank to at most {smaller // 2}."
            )


def gradient_factors(gradient_OI: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    r"""Return the factors of LoRA-GA: the first R right singular vectors of the gradient and the next R left ones.

    .. math:: A_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} V_{[1:r]}^\top, \quad B_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} U_{[r+1:2r]}

    Args:
        gradient_OI: Gradient of the loss with respect to W.
        rank: R, at most half the smaller side.
        gamma: γ.

    Returns:
        (A: R × I, B: O × R), float32.

    Reference: Wang et al., LoRA-GA, 2024, section 3.
    """
    left, _, right = torch.linalg.svd(gradient_OI.float(), full_matrices=False)
    size = gradient_OI.shape[0] ** 0.25 / gamma**0.5
    return size * right[:rank], size * left[:, rank : 2 * rank]
