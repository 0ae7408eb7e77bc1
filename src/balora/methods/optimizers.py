"""Optimizers that belong to a method: LoRA+ (another rate for B) and LoRA-FA (A frozen, B's gradient corrected)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers, wrap_lora
from balora.methods.layers.weight_views import weight_matrices
from balora.methods.method import AdaptOptions
from balora.models.adapted_model import ADAPTER


def make_loraplus(
    model: nn.Module, kind: type[Optimizer], settings: dict[str, Any], options: Mapping[str, Any]
) -> Optimizer:
    """The run's own optimizer with two rates, peft's grouping: B and vectors learn at ratio × the rate of the rest.

    Args:
        model: Adapted.
        kind: The optimizer's class.
        settings: Its keyword arguments, ``lr`` among them.
        options: The method's.

    Reference: Hayou et al., LoRA+, 2024, section 5.
    """
    settings = dict(settings)
    decay = settings.pop("weight_decay", 0.0)
    return create_loraplus_optimizer(
        model,  # type: ignore[arg-type]
        kind,
        loraplus_lr_ratio=options["lr_ratio"],
        loraplus_weight_decay=decay,
        **settings,
    )


def wrap_lorafa(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """LoRA with A frozen at its random start."""
    adapted = wrap_lora(model, options)
    for _, layer in lora_layers(adapted):
        factor_a = layer.lora_A[ADAPTER]
        factor_a.requires_grad_(False)
    return adapted


class LoRAFA(AdamW):
    r"""AdamW on B with the gradient of LoRA-FA, which makes B's step the best stand-in for a step of the whole weight.

    .. math:: \tilde g_B = \frac{1}{s^2}\, g_B (A A^\top)^{-1}

    peft's optimizer for this rounds the product to bfloat16 whatever the run's precision, and keeps its state by name, so it
    is written here. A never changes, so its inverse is taken once.

    Args:
        parameters: What learns.
        model: The adapted model, to find each B's A.
        **settings: AdamW's.

    Reference: Zhang et al., LoRA-FA, 2023, section 3 (with the correction of its later version, eq. 8).
    """

    def __init__(self, parameters: list[nn.Parameter], model: nn.Module, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._corrections: list[Callable[[], None]] = [_correction(layer) for _, layer in lora_layers(model)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Correct the gradients of every B, then step as AdamW."""
        for correct in self._corrections:
            correct()
        return super().step(closure)


def _correction(layer: Any) -> Callable[[], None]:
    owned = [matrix for matrix in weight_matrices(layer) if matrix.layer is layer]
    b_parameter = layer.lora_B[ADAPTER].weight
    inverses = [_inverse_gram(matrix.factor_a_RI) / matrix.scaling**2 for matrix in owned]

    def correct() -> None:
        gradient = b_parameter.grad
        if gradient is None:
            return
        for matrix, inverse_RR in zip(owned, inverses, strict=True):
            columns_OR = (
                gradient if matrix.expert is None else gradient.view(len(gradient), -1, len(owned))[..., matrix.expert]
            )
            columns_OR.copy_(columns_OR.float() @ inverse_RR.to(gradient.device))

    return correct


def _inverse_gram(factor_a_RI: Tensor) -> Tensor:
    # float64: the Gram matrix has the square of A's condition number.
    gram_RR = factor_a_RI.double() @ factor_a_RI.double().T
    return torch.linalg.pinv(gram_RR, hermitian=True).float()


def make_lorafa(
    model: nn.Module, kind: type[Optimizer], settings: dict[str, Any], options: Mapping[str, Any]
) -> Optimizer:
    """`LoRAFA` over what learns.

    Raises:
        BALoraError: The run asks for another optimizer than AdamW.
    """
    if not issubclass(kind, AdamW):
        raise BALoraError(
            f"Method lorafa has an optimizer of its own, a form of AdamW; training.optim asks for {kind.__name__}."
        )
    return LoRAFA([p for p in model.parameters() if p.requires_grad], model, **settings)
