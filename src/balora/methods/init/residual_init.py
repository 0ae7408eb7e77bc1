"""Starts that move part of the pre-trained weights into the adapter: W = W_res + s·B₀A₀, the residual frozen.

PiSSA and MiLoRA differ only in which part that is; each gives a decomposition of one matrix. The starts that do not share the
scaling between the factors (OLoRA, LoRA-GA) or need data write the factors themselves and shift the weight as these do.
Shapes: O output features, I input features, R adapter rank.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from peft.tuners.lora.layer import LoraLayer, ParamWrapper
from torch import Tensor, nn

from balora.errors import BALoraError
from balora.methods.layers.peft_lora import lora_layers
from balora.methods.layers.weight_views import matrices
from balora.methods.quantization.quantize import loaded_bits
from balora.methods.registry import AdaptOptions

Decompose = Callable[[Tensor, int, int], tuple[Tensor, Tensor]]
"""(W: O × I in float32, R, seed) to (A: R × I, B: O × R) of the part B·A that goes into the adapter."""

_QUANTIZED = (
    "{} is quantized, and a part of it cannot be taken out of rounded weights. Load the model in bfloat16 or float32 "
    "(method.bits quantizes what remains), or use method 'lora' on the quantized one."
)


@torch.no_grad()
def start_from_weights(model: nn.Module, decompose: Decompose, seed: int) -> None:
    """Move a part of every target's weight into its factors, one matrix at a time, on the matrix's device.

    Args:
        model: Wrapped.
        decompose: Gives the part.
        seed: Each matrix gets its own, counted from this one.

    """
    for index, matrix in enumerate(matrices(model)):
        weight_OI = matrix.weight_OI.float()
        factor_a_RI, factor_b_OR = decompose(weight_OI, matrix.rank, seed + index)
        root = matrix.scaling**0.5
        matrix.set_factors(factor_a_RI / root, factor_b_OR / root)
        matrix.shift(weight_OI)


def shift_all(model: nn.Module) -> None:
    """Take s·B₀A₀ out of every target's weight, for factors that are already there."""
    for matrix in matrices(model):
        matrix.shift()


def refuse_unsuitable(model: nn.Module, options: AdaptOptions) -> None:
    """Refuse targets whose frozen weight cannot be shifted: quantized, shared, or not a matrix.

    Raises:
        BALoraError: One such target is found; it is named with the way out.
    """
    owners: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(name)
    for name, layer in lora_layers(model):
        problem = _QUANTIZED.format(name) if loaded_bits(model) is not None else _unsuitable(name, layer, owners)
        if problem is not None:
            raise BALoraError(problem)


def _unsuitable(name: str, layer: LoraLayer, owners: dict[int, list[str]]) -> str | None:
    weight = layer.get_param() if isinstance(layer, ParamWrapper) else getattr(layer.get_base_layer(), "weight", None)
    if weight is None or (weight.is_floating_point() and weight.dim() not in (2, 3)):
        return (
            f"{name} holds no weight matrix, and this start needs one. Name the layers to adapt in target_modules, such as "
            "[q_proj, k_proj, v_proj, o_proj], or use method 'lora'."
        )
    if not weight.is_floating_point() or weight.element_size() < 2:
        return _QUANTIZED.format(name)
    if len(owners[id(weight)]) > 1:
        return (
            f"{name} shares its weight with {owners[id(weight)][0]} (tied embeddings), which this start would change too. "
            "Leave it out of target_modules, or untie the embeddings first."
        )
    return None
