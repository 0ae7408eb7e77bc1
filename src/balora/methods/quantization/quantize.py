"""Frozen weights in 4 or 8 bits: which layers, how they are exchanged, what is refused.

The start is computed in full precision and what it leaves frozen is rounded afterwards, one layer at a time. Under a method
that moves the largest part of a weight into the adapter (PiSSA), that is the residual, of which rounding loses less.
Shapes: O output features, I input features.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.methods.target_modules import stacked_weights
from balora.models.adapted_model import base_model_of

INSTALL = "Install it with `pip install 'balora[quantization]'`"
LARGEST_ERROR = {4: 0.35, 8: 0.25}
"""How far a rounded weight may be from what was rounded, as a share of its norm; more is no rounding.

NF4 moves an entry by at most 0.152 of its block's largest, 8 bits by 1/254 of its row's. On normally distributed weights
that makes 0.09 and 0.006; a block whose largest entry dwarfs the rest makes 0.3.
"""


class Quantized:
    """Mixed into a layer with a rounded weight. (`balora.methods.quantization.layers`, which needs bitsandbytes.)"""

    bits: int
    turned = False
    """Whether it stands for a layer that stores its weight as I × O (GPT-2's Conv1D)."""

    def dequantized(self) -> Tensor:
        """O × I, as the forward multiplies by it."""
        raise NotImplementedError

    def plain(self, dtype: torch.dtype) -> nn.Module:
        """An ordinary layer that computes the same."""
        weight_OI = self.dequantized().to(dtype)
        rows, columns = weight_OI.shape
        layer = Conv1D(0, 0) if self.turned else nn.Linear(columns, rows, device="meta")
        layer.weight = nn.Parameter(weight_OI.T.contiguous() if self.turned else weight_OI, requires_grad=False)
        layer.bias = self.bias  # type: ignore[attr-defined]
        if self.turned:
            layer.nf, layer.nx = rows, columns
        return layer


def loaded_bits(model: nn.Module) -> int | None:
    """In how many bits a model's weights are, None for ordinary ones."""
    for bits in (4, 8):
        if getattr(model, f"is_loaded_in_{bits}bit", False):
            return bits
    return None


def refuse_unquantizable(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse a model whose frozen weights cannot be quantized as asked, by its layers alone.

    Raises:
        BALoraError: bitsandbytes is missing, the model is quantized otherwise, or its weights are experts' stacks.
    """
    bits = options.get("bits")
    if bits is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BALoraError(f"method.bits: {bits} needs bitsandbytes, which is not installed. {INSTALL}.")
    loaded = loaded_bits(model)
    if loaded not in (None, bits):
        raise BALoraError(
            f"The model is loaded in {loaded} bits already, and method.bits asks for {bits}. Load it in bfloat16 or float32, "
            f"or use method 'lora' without bits."
        )
    stacks = stacked_weights(model)
    if stacks:
        raise BALoraError(
            f"{stacks[0]} stacks the weights of several experts, which bitsandbytes' layers cannot hold, so most of the model "
            "would stay as it is. Leave out method.bits (methods lora, pissa and balora take the experts as they are)."
        )


def quantizable(model: nn.Module, heads: list[str]) -> list[str]:
    """Names of the layers that are quantized: all that multiply by a matrix, but for heads, tied weights, single outputs,
    and those that the model's own code keeps in float32 (T5's ``wo``, whose input it casts to the weight's dtype).

    Args:
        model: A transformers model, under an adapter or not.
        heads: Modules of a classification head, which is trained whole.
    """
    inner = base_model_of(model)
    output = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    kept = {*(getattr(inner, "_keep_in_fp32_modules", None) or ()), *heads}
    owners: dict[int, int] = {}
    for _, parameter in inner.named_parameters(remove_duplicate=False):
        owners[id(parameter)] = owners.get(id(parameter), 0) + 1
    return [
        name
        for name, module in inner.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not isinstance(module, Quantized)
        and module is not output
        and ".lora_" not in name
        and kept.isdisjoint(name.split("."))
        and owners[id(module.weight)] == 1
        and min(module.weight.shape) > 1
    ]


def rounded_bytes(shape: tuple[int, ...], bits: int, double: bool = True) -> int:
    """Memory of a quantized weight with its scales.

    Args:
        shape: (O, I).
        bits: 4 or 8.
        double: With 4 bits, whether the scales are rounded too.

    Example:
        >>> rounded_bytes((4096, 4096), 4) / 4096**2  # bytes for each entry
        0.515869140625
    """
    entries = math.prod(shape)
    if bits == 8:
        return entries + 4 * shape[0]
    blocks = math.ceil(entries / 64)
    return math.ceil(entries / 2) + (blocks + 4 * math.ceil(blocks / 256) if double else 4 * blocks)


@torch.no_grad()
def quantize(model: PreTrainedModel, heads: list[str], bits: int, *, double: bool = True) -> None:
    """Round a model's weights in place, one layer at a time, on the device each is on.

    Args:
        model: Without an adapter; one that is quantized already stays as it is.
        heads: Modules of a classification head.
        bits: 4 or 8.
        double: With 4 bits, whether the scales are rounded too.

    Raises:
        BALoraError: A weight cannot be rounded: it is not finite, or beyond float16.
    """
    if loaded_bits(model) is not None:
        return
    from balora.methods.quantization.layers import Linear4bit, Linear8bit

    for name in quantizable(model, heads):
        module: Any = model.get_submodule(name)
        turned = isinstance(module, Conv1D)
        weight_OI = module.weight.T if turned else module.weight
        layer: Linear4bit | Linear8bit
        if bits == 4:
            layer = Linear4bit.holding(weight_OI, module.bias, double=double)
        else:
            layer = Linear8bit.holding(weight_OI, module.bias)
        error = float(
            torch.dist(layer.dequantized().float(), weight_OI.float()) / weight_OI.float().norm().clamp_min(1e-12)
        )
        if not error <= LARGEST_ERROR[bits]:
            raise BALoraError(
                f"{name} cannot be rounded to {bits} bits: it would be off by {error:.2g} of its norm. Does it hold NaN, or values "
                "beyond float16? Otherwise leave out method.bits."
            )
        layer.turned = turned
        model.set_submodule(name, layer.train(module.training))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # by which peft and the Trainer know


def take_over(model: nn.Module) -> None:
    """Exchange the layers of a model that was loaded through bitsandbytes for ours, over the same memory."""
    if loaded_bits(model) is None:
        return
    from balora.methods.quantization.layers import ours

    for name, module in list(model.named_modules()):
        layer = ours(module)
        if layer is not None:
            model.set_submodule(name, layer.train(module.training))


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Exchange quantized layers for ordinary ones that compute the same, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Quantized):
            model.set_submodule(name, module.plain(dtype))
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
        if getattr(model, name, None):
            setattr(model, name, None)
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:  # what transformers does to a stored model as it loads, and undoes as it saves
        model._weight_conversions = [c for c in conversions if not _is_bitsandbytes(c)]  # type: ignore[assignment]
    if hasattr(getattr(model, "config", None), "quantization_config"):
        del model.config.quantization_config  # type: ignore[union-attr]


def _is_bitsandbytes(conversion: Any) -> bool:
    return any(type(step).__module__.endswith(".bitsandbytes") for step in getattr(conversion, "operations", ()))


def plain_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """A model's parameters by name, quantized ones as what the forward multiplies by: codes and constants in one."""
    quantized = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, Quantized)}
    for name, parameter in model.named_parameters():
        yield name, quantized[name].dequantized() if name in quantized else parameter
