"""LoRA-GA: start the adapter so that its first step goes where full fine-tuning's would.

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
    """Set the factors from the gradient of the calibration rows, and take their product out of the weights.

    Raises:
        BALoraError: No data was given, or a layer has no gradient.
    """
    gradients = weight_gradients(model, calibration_rows(options, num_calibration_rows(options.extra)))
    with torch.no_grad():
        for matrix, gradient_OI in gradients:
            matrix.set_factors(*aligned(gradient_OI, matrix.rank, options.extra["gamma"]))
            matrix.store_residual()


def check_lora_ga(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse a rank of which twice is more than a target has singular directions.

    Raises:
        BALoraError: It is, or a weight cannot be shifted.
    """
    check_residual_targets(model, options)
    for name, layer in lora_layers(model):
        if 2 * options.rank > min(weight_shape(layer)):
            raise BALoraError(
                f"Method loraga takes 2r = {2 * options.rank} singular directions of each gradient, and {name} has "
                f"{min(weight_shape(layer))}. Lower method.rank to at most {min(weight_shape(layer)) // 2}."
            )


def aligned(gradient_OI: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    r"""The factors of LoRA-GA: singular directions of the gradient, the first R for A, the next R for B.

    .. math:: A_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} V_{[1:r]}^\top, \quad B_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} U_{[r+1:2r]}

    Args:
        gradient_OI: Of the loss with respect to W.
        rank: R, at most half the smaller side.
        gamma: γ.

    Returns:
        (A: R × I, B: O × R), float32.

    Reference: Wang et al., LoRA-GA, 2024, section 3.
    """
    left, _, right = torch.linalg.svd(gradient_OI.float(), full_matrices=False)
    size = gradient_OI.shape[0] ** 0.25 / gamma**0.5
    return size * right[:rank], size * left[:, rank : 2 * rank]
