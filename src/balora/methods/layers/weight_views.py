"""Views of the weight matrices under a LoRA adapter, with one interface for layers, transposed layers and stacks of experts.

Shapes: E experts, O output features, I input features, R rank.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from balora.methods.layers.peft_lora import lora_layers
from balora.models.adapted_model import ADAPTER


@dataclasses.dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix and its two LoRA factors, as views that can be written to."""

    name: str
    """Name of the layer in the pre-trained model."""
    layer: LoraLayer
    expert: int | None = None
    """Index in a stack of experts; None for an ordinary layer."""

    @property
    def scaling(self) -> float:
        """Scaling s of s·B·A."""
        return float(self.layer.scaling[ADAPTER])

    @property
    def rank(self) -> int:
        """Rank R of the adapter."""
        return int(self.layer.r[ADAPTER])

    @property
    def weight_OI(self) -> Tensor:
        """Frozen weight in its own dtype."""
        return self.oriented(frozen_parameter(self.layer).data)

    @property
    def factor_a_RI(self) -> Tensor:
        """Factor A."""
        weight = factor(self.layer.lora_A[ADAPTER])
        return weight if self.expert is None else split_a(weight, experts_of(self.layer))[self.expert]

    @property
    def factor_b_OR(self) -> Tensor:
        """Factor B."""
        weight = factor(self.layer.lora_B[ADAPTER])
        return weight if self.expert is None else split_b(weight, experts_of(self.layer))[self.expert]

    def oriented(self, stored: Tensor) -> Tensor:
        """Return this matrix as O × I from a tensor in the stored layout of the weight (such as its gradient)."""
        if self.expert is not None:
            # For a stack, peft defines in and out features so that (out, in) is the order in which the model multiplies.
            return stored[self.expert] if self.layer._did_swap_in_out_features else stored[self.expert].T  # type: ignore[union-attr]
        return stored.T if self.layer.fan_in_fan_out else stored  # type: ignore[union-attr]

    @torch.no_grad()
    def set_factors(self, factor_a_RI: Tensor, factor_b_OR: Tensor) -> None:
        """Write A and B in the layer's dtype and on its device."""
        self.factor_a_RI.copy_(factor_a_RI)
        self.factor_b_OR.copy_(factor_b_OR)

    @torch.no_grad()
    def store_residual(self) -> None:
        """Replace W by the residual W - s·B₀A₀. The factors have their stored dtype here, so that the function is unchanged."""
        self.weight_OI.copy_(
            self.weight_OI.float() - self.scaling * (self.factor_b_OR.float() @ self.factor_a_RI.float())
        )

    @torch.no_grad()
    def undo_residual(self) -> None:
        """Replace the residual by W again, up to rounding."""
        change_OI = self.scaling * (self.factor_b_OR.float() @ self.factor_a_RI.float())
        self.weight_OI.copy_(self.weight_OI.float() + change_OI)


def weight_matrices(model: nn.Module) -> Iterator[WeightMatrix]:
    """Yield every adapted weight matrix in the model's order, one per expert in a stack."""
    for name, layer in lora_layers(model):
        for expert in range(experts_of(layer)) if is_stack(layer) else [None]:
            yield WeightMatrix(name, layer, expert)


def split_a(stored: Tensor, experts: int) -> Tensor:
    """Return A of a stack, which peft stores as (E·R) × I, as E × R × I; a view."""
    return stored.view(experts, -1, stored.shape[-1])


def split_b(stored: Tensor, experts: int) -> Tensor:
    """Return B of a stack, which peft stores as O × (R·E) with the experts as the faster index, as E × O × R; a view."""
    return stored.view(len(stored), -1, experts).permute(2, 0, 1)


def join_a(split_ERI: Tensor) -> Tensor:
    """Return A of a stack in peft's layout, from E × R × I."""
    return split_ERI.reshape(-1, split_ERI.shape[-1])


def join_b(split_EOR: Tensor) -> Tensor:
    """Return B of a stack in peft's layout, from E × O × R."""
    return split_EOR.permute(1, 2, 0).reshape(split_EOR.shape[1], -1)


def is_stack(layer: LoraLayer) -> bool:
    """Return whether a LoRA layer adapts the stacked weights of several experts."""
    return isinstance(layer, ParamWrapper) and frozen_parameter(layer).dim() == 3


def experts_of(layer: LoraLayer) -> int:
    """Return the number of experts E of a stack; 1 for an ordinary layer."""
    return int(getattr(layer, "num_experts", 1))


def frozen_parameter(layer: LoraLayer) -> Any:
    """Return the weight under a LoRA layer, in its stored layout; None if the layer has no weight."""
    return layer.get_param() if isinstance(layer, ParamWrapper) else getattr(layer.get_base_layer(), "weight", None)


def factor(module_or_tensor: nn.Module | Tensor) -> Tensor:
    """Return the tensor of a LoRA factor, which peft stores in a linear layer or directly."""
    tensor = module_or_tensor.weight if isinstance(module_or_tensor, nn.Module) else module_or_tensor
    return tensor.data  # type: ignore[no-any-return, union-attr, return-value]
