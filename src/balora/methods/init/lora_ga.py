"""LoRA-GA: initialize the adapter so that its first step follows the gradient of full fine-tuning.

Shapes: O output features, I input features, R adapter rank.
"""

import torch
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.init.calibration import calibration_rows, weight_gradients
from balora.methods.init.residual_init import check_residual_targets, store_all_residuals
from balora.methods.layers.peft_lora import lora_layers, weight_shape
from balora.methods.method import AdaptOptions


def initialize_lora_ga(model: nn.Module, options: AdaptOptions) -> None:
    """Set the factors from the gradient on the calibration rows, and subtract their product from the weights."""
    gradients = weight_gradients(model, calibration_rows(options, model))
    with torch.no_grad():
        for matrix, gradient_OI in gradients:
            matrix.set_factors(*gradient_factors(gradient_OI, matrix.rank, options.extra["gamma"]))
        store_all_residuals(model)


def check_lora_ga(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse weights that cannot become residuals, and a rank above half the smaller side of a target."""
    check_residual_targets(model, options)
    for name, layer in lora_layers(model):
        smaller = min(weight_shape(layer))
        if 2 * options.rank > smaller:
            raise BALoraError(
                f"Method loraga needs 2r = {2 * options.rank} singular directions of each gradient, and {name} has {smaller}. "
                f"Lower method.rank to at most {smaller // 2}."
            )


def gradient_factors(gradient_OI: Tensor, rank: int, gamma: float) -> tuple[Tensor, Tensor]:
    r"""Return A (R × I) and B (O × R): the first R right singular vectors of the gradient and the next R left ones.

    .. math:: A_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} V_{[1:r]}^\top, \quad B_0 = \frac{d_{out}^{1/4}}{\sqrt\gamma} U_{[r+1:2r]}

    Reference: Wang et al., LoRA-GA, 2024, section 3.
    """
    left, _, right = torch.linalg.svd(gradient_OI.float(), full_matrices=False)
    size = gradient_OI.shape[0] ** 0.25 / gamma**0.5
    return size * right[:rank], size * left[:, rank : 2 * rank]
