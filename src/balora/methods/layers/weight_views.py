"""The weight matrices under a LoRA adapter, one by one, whatever holds them: a layer, a transposed layer, a stack of experts.

Shapes: E experts, O output features, I input features, R rank.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from balora.methods.layers.peft_lora import lora_layers
from balora.models.adapted_model import ADAPTER


@dataclasses.dataclass(frozen=True)
class WeightMatrix:
    """One weight matrix and its two factors, all of them views that can be written to."""

    name: str
    """Of the layer, inside the pre-trained model."""
    layer: LoraLayer
    expert: int | None = None
    """Its number in a stack; None for a layer of its own."""

    @property
    def scaling(self) -> float:
        """Of s·B·A."""
        return float(self.layer.scaling[ADAPTER])

    @property
    def rank(self) -> int:
        """R."""
        return int(self.layer.r[ADAPTER])

    @property
    def weight_OI(self) -> Tensor:
        """The frozen weight, in its own dtype."""
        weight = frozen_weight(self.layer)
        if self.expert is not None:
            # peft counts a stack's in and out features so that (out, in) is how the model multiplies.
            weight = weight[self.expert]
            return weight if self.layer._did_swap_in_out_features else weight.T  # type: ignore[union-attr]
        return weight.T if self.layer.fan_in_fan_out else weight  # type: ignore[union-attr]

    @property
    def factor_a_RI(self) -> Tensor:
        """A."""
        weight = factor(self.layer.lora_A[ADAPTER])
        return weight if self.expert is None else split_a(weight, experts_of(self.layer))[self.expert]

    @property
    def factor_b_OR(self) -> Tensor:
        """B."""
        weight = factor(self.layer.lora_B[ADAPTER])
        return weight if self.expert is None else split_b(weight, experts_of(self.layer))[self.expert]

    @torch.no_grad()
    def set_factors(self, factor_a_RI: Tensor, factor_b_OR: Tensor) -> None:
        """Write A and B, in the layer's own dtype and on its device."""
        self.factor_a_RI.copy_(factor_a_RI)
        self.factor_b_OR.copy_(factor_b_OR)

    @torch.no_grad()
    def store_residual(self, weight_OI: Tensor | None = None) -> None:
        """Freeze W − s·B₀A₀ in place of W, from the factors *as stored*, so that rounding them does not move the function."""
        weight_OI = self.weight_OI.float() if weight_OI is None else weight_OI
        self.weight_OI.copy_(weight_OI - self.scaling * (self.factor_b_OR.float() @ self.factor_a_RI.float()))


def weight_matrices(model: nn.Module) -> Iterator[WeightMatrix]:
    """Every adapted weight matrix, an expert's each by itself, in the model's order."""
    for name, layer in lora_layers(model):
        for expert in range(experts_of(layer)) if is_stack(layer) else [None]:
            yield WeightMatrix(name, layer, expert)


def split_a(stored: Tensor, experts: int) -> Tensor:
    """A of a stack as peft stores it, (E·R) × I, as E × R × I; a view."""
    return stored.view(experts, -1, stored.shape[-1])


def split_b(stored: Tensor, experts: int) -> Tensor:
    """B of a stack as peft stores it, O × (R·E), the experts' columns side by side rank by rank, as E × O × R; a view."""
    return stored.view(len(stored), -1, experts).permute(2, 0, 1)


def join_a(split_ERI: Tensor) -> Tensor:
    """`split_a` undone."""
    return split_ERI.reshape(-1, split_ERI.shape[-1])


def join_b(split_EOR: Tensor) -> Tensor:
    """`split_b` undone."""
    return split_EOR.permute(1, 2, 0).reshape(split_EOR.shape[1], -1)


def is_stack(layer: LoraLayer) -> bool:
    """Whether a LoRA layer adapts the stacked weights of several experts."""
    return isinstance(layer, ParamWrapper) and frozen_weight(layer).dim() == 3


def experts_of(layer: LoraLayer) -> int:
    """E of a stack, 1 for a layer of its own."""
    return int(getattr(layer, "num_experts", 1))


def frozen_weight(layer: LoraLayer) -> Tensor:
    """The tensor under a LoRA layer, detached, as it is stored."""
    weight = layer.get_param() if isinstance(layer, ParamWrapper) else layer.get_base_layer().weight
    return weight.data  # type: ignore[no-any-return, union-attr]


def factor(holder: nn.Module | Tensor) -> Tensor:
    """The tensor of a LoRA factor, which peft keeps in a layer or bare."""
    tensor = holder.weight if isinstance(holder, nn.Module) else holder
    return tensor.data  # type: ignore[no-any-return, union-attr, return-value]
