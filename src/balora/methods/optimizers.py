"""Optimizers of LoRA+ (a higher learning rate for B) and LoRA-FA (A frozen, the gradient of B corrected)."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from peft.optimizers import create_loraplus_optimizer
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer
from transformers import PreTrainedModel

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers, wrap_lora
from balora.methods.layers.weight_views import split_b, weight_matrices
from balora.methods.method import AdaptOptions
from balora.models.adapted_model import ADAPTER


def make_loraplus(
    model: nn.Module, kind: type[Optimizer], settings: dict[str, Any], options: Mapping[str, Any]
) -> Optimizer:
    """Return the run's optimizer with parameter groups: B and vectors learn at ``lr_ratio`` × the learning rate.

    Reference: Hayou et al., LoRA+, 2024, section 5.
    """
    decay = {"loraplus_weight_decay": settings.get("weight_decay", 0.0)}
    others = {name: value for name, value in settings.items() if name != "weight_decay"}
    return create_loraplus_optimizer(model, kind, loraplus_lr_ratio=options["lr_ratio"], **decay, **others)  # type: ignore[arg-type]


def wrap_lorafa(model: PreTrainedModel, options: AdaptOptions) -> nn.Module:
    """Add LoRA with A frozen at its random initial values."""
    adapted = wrap_lora(model, options)
    for _, layer in lora_layers(adapted):
        layer.lora_A[ADAPTER].requires_grad_(False)
    return adapted


def make_lorafa(
    model: nn.Module, kind: type[Optimizer], settings: dict[str, Any], options: Mapping[str, Any]
) -> Optimizer:
    """Return `LoRAFA` over the trainable parameters, and refuse a run with an optimizer other than AdamW."""
    if problem := optimizer_problem("lorafa", kind):
        raise BALoraError(problem)
    return LoRAFA([p for p in model.parameters() if p.requires_grad], model, **settings)


def optimizer_problem(method: str, kind: type[Optimizer]) -> str | None:
    """Return why a method cannot use the optimizer of a run, or None."""
    if method != "lorafa" or (isinstance(kind, type) and issubclass(kind, AdamW)):
        return None
    return (
        f"Method lorafa has its own optimizer, a variant of AdamW, and training.optim asks for {kind.__name__}. Set "
        "training.optim to an AdamW of torch, or choose another method."
    )


class LoRAFA(AdamW):
    r"""AdamW with LoRA-FA's gradient of B: its step is the best approximation of a step of the full weight.

    .. math:: \tilde g_B = \frac{1}{s^2}\, g_B (A A^\top)^{-1}

    peft's optimizer for LoRA-FA rounds the product to bfloat16 at every precision and stores its state by name, so it is not
    used. A never changes, so the inverse is computed once.

    Reference: Zhang et al., LoRA-FA, 2023, section 3 (with the correction of its later version, eq. 8).
    """

    def __init__(self, parameters: list[nn.Parameter], model: nn.Module, **settings: Any) -> None:
        super().__init__(parameters, **settings)
        self._corrections: list[Callable[[], None]] = [_correction(layer) for _, layer in lora_layers(model)]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Correct the gradient of every B, then make AdamW's step."""
        for correct in self._corrections:
            correct()
        return super().step(closure)


def _correction(layer: Any) -> Callable[[], None]:
    """Return a function that corrects the gradient of one layer's B."""
    # A stack of experts can be wrapped twice; its inner layer has its own correction.
    matrices = [matrix for matrix in weight_matrices(layer) if matrix.layer is layer]
    b_parameter = layer.lora_B[ADAPTER].weight
    inverses = [_inverse_gram(matrix.factor_a_RI) / matrix.scaling**2 for matrix in matrices]

    def correct() -> None:
        gradient = b_parameter.grad
        if gradient is None:
            return
        for matrix, inverse_RR in zip(matrices, inverses, strict=True):
            columns_OR = gradient if matrix.expert is None else split_b(gradient, len(matrices))[matrix.expert]
            columns_OR.copy_(columns_OR.float() @ inverse_RR.to(gradient.device))

    return correct


def _inverse_gram(factor_a_RI: Tensor) -> Tensor:
    # float64, because the condition number of the Gram matrix is the square of A's.
    gram_RR = factor_a_RI.double() @ factor_a_RI.double().T
    return torch.linalg.pinv(gram_RR, hermitian=True).float()
