"""Quantize frozen weights to 4 or 8 bits: which layers are quantized, which models are refused.

The adapter's initial values are computed in full precision, and the frozen weights are quantized afterwards, one layer at a
time. For methods that move the largest part of a weight into the adapter (PiSSA), the quantization error is smaller, because
only the residual is quantized. Shapes: O output features, I input features.
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from balora.errors import BALoraError
from balora.methods.quantization.quantized_linear import QuantizedLinear
from balora.methods.target_modules import linear_layers, stacked_weights
from balora.models.adapted_model import base_model_of
from balora.models.multimodal import parts_beside_text

MAX_RELATIVE_ERROR = {4: 0.35, 8: 0.25}
"""Largest allowed quantization error by number of bits, relative to the norm of the weight.

NF4 changes an entry by at most 0.152 of the largest entry in its block, 8 bits by 1/254 of the largest in its row. For
normally distributed weights the relative errors are 0.09 and 0.006; a block with one extreme entry can reach 0.3.
"""


def loaded_bits(model: nn.Module) -> int | None:
    """Return the number of bits in which a model's weights are quantized; None for ordinary weights."""
    return next((bits for bits in (4, 8) if getattr(model, f"is_loaded_in_{bits}bit", False)), None)


def check_quantizable(model: nn.Module, options: Mapping[str, Any]) -> None:
    """Refuse ``bits`` without bitsandbytes, for a model that is quantized to other bits, and for stacks of experts."""
    bits = options.get("bits")
    if bits is None:
        return
    if importlib.util.find_spec("bitsandbytes") is None:
        raise BALoraError(
            f"method.bits: {bits} needs bitsandbytes, which is not installed. Install it with `pip install 'balora[quantization]'`."
        )
    loaded = loaded_bits(model)
    if loaded not in (None, bits):
        raise BALoraError(
            f"The model is loaded in {loaded} bits already, and method.bits asks for {bits}. Load it in bfloat16 or float32, "
            f"or use method 'lora' without bits."
        )
    beside = tuple(f"{part}." for part in parts_beside_text(model))
    stacks = [name for name in stacked_weights(model) if not name.startswith(beside)]
    if stacks:
        raise BALoraError(
            f"{stacks[0]} stacks the weights of several experts. The layers of bitsandbytes do not support such a stack, so most "
            "of the model would not be quantized. Leave out method.bits (methods lora, pissa and balora adapt the experts)."
        )


def quantizable_layers(model: nn.Module, heads: list[str]) -> list[str]:
    """Return the names of the layers to quantize: all linear layers, with some exceptions.

    The exceptions are heads, tied weights, layers with a single output, the vision tower and other parts beside the text part,
    and layers that the model's code keeps in float32 (T5 casts the input of ``wo`` to the weight's dtype).
    """
    base = base_model_of(model)
    output = base.get_output_embeddings() if hasattr(base, "get_output_embeddings") else None
    excluded = {*(getattr(base, "_keep_in_fp32_modules", None) or ()), *heads}
    beside = tuple(f"{part}." for part in parts_beside_text(base))
    uses: dict[int, int] = {}
    for _, parameter in base.named_parameters(remove_duplicate=False):
        uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    return [
        name
        for name, module in linear_layers(base)
        if not isinstance(module, QuantizedLinear)
        and module is not output
        and ".lora_" not in name
        and excluded.isdisjoint(name.split("."))
        and not name.startswith(beside)
        and uses[id(module.weight)] == 1
        and min(module.weight.shape) > 1
    ]


def quantized_bytes(shape: tuple[int, ...], bits: int, double: bool = True) -> int:
    """Return the memory of a quantized O × I weight with its scales, in bytes.

    Example:
        >>> quantized_bytes((4096, 4096), 4) / 4096**2  # bytes for each entry
        0.515869140625
    """
    entries = math.prod(shape)
    if bits == 8:
        return entries + 4 * shape[0]
    blocks = math.ceil(entries / 64)
    return math.ceil(entries / 2) + (blocks + 4 * math.ceil(blocks / 256) if double else 4 * blocks)


@torch.no_grad()
def quantize(model: PreTrainedModel, heads: list[str], bits: int, *, double: bool = True) -> None:
    """Quantize the weights of a model without an adapter in place, one layer at a time, to 4 or 8 bits.

    With 4 bits and ``double``, the scales are quantized too. A model that is already quantized is not changed. A weight that
    is not finite, or too large for float16, is an error.
    """
    if loaded_bits(model) is not None:
        return
    for name in quantizable_layers(model, heads):
        module: Any = model.get_submodule(name)
        model.set_submodule(name, _quantized(name, module, bits, double).train(module.training))
    setattr(model, f"is_loaded_in_{bits}bit", True)  # peft and the Trainer read this attribute


@torch.no_grad()
def check_quantized_weights(model: nn.Module, heads: list[str], bits: int, *, double: bool = True) -> None:
    """Refuse a model (also one with an adapter) that `quantize` would refuse halfway. Nothing is replaced."""
    if loaded_bits(model) is not None:
        return
    base = base_model_of(model)
    for name in quantizable_layers(model, heads):
        _quantized(name.removesuffix(".base_layer"), base.get_submodule(name), bits, double)


def _quantized(name: str, module: Any, bits: int, double: bool) -> nn.Module:
    """Quantize one layer, and refuse a weight with a large error."""
    from balora.methods.quantization.bitsandbytes_layers import Linear4bit, Linear8bit

    transposed = isinstance(module, Conv1D)
    weight_OI = module.weight.T if transposed else module.weight
    layer: Linear4bit | Linear8bit
    if bits == 4:
        layer = Linear4bit.quantize(weight_OI, module.bias, double=double)
    else:
        layer = Linear8bit.quantize(weight_OI, module.bias)
    wide_OI = weight_OI.float()
    error = float(torch.dist(layer.dequantized().float(), wide_OI) / wide_OI.norm().clamp_min(1e-12))
    if not error <= MAX_RELATIVE_ERROR[bits]:
        raise BALoraError(
            f"{name} cannot be quantized to {bits} bits: the error would be {error:.2g} of its norm. Check the weights for NaN "
            "and for values beyond float16, or leave out method.bits."
        )
    layer.transposed = transposed
    return layer


def replace_bitsandbytes_layers(model: nn.Module) -> None:
    """Replace the layers of bitsandbytes in a loaded model by `QuantizedLinear` layers over the same memory."""
    if loaded_bits(model) is None:
        return
    from balora.methods.quantization.bitsandbytes_layers import from_bitsandbytes

    for name, module in list(model.named_modules()):
        layer = from_bitsandbytes(module)
        if layer is not None:
            model.set_submodule(name, layer.train(module.training))


def dequantize(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace quantized layers by ordinary ones with the same function, in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            model.set_submodule(name, module.to_linear(dtype))
    for name in ("is_loaded_in_4bit", "is_loaded_in_8bit", "hf_quantizer", "quantization_method"):
        if getattr(model, name, None):
            setattr(model, name, None)
    # transformers would convert the weights back to bitsandbytes' format when it saves the model.
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [c for c in conversions if not _is_bitsandbytes(c)]  # type: ignore[assignment]
    if hasattr(getattr(model, "config", None), "quantization_config"):
        del model.config.quantization_config  # type: ignore[union-attr]


def _is_bitsandbytes(conversion: Any) -> bool:
    return any(type(step).__module__.endswith(".bitsandbytes") for step in getattr(conversion, "operations", ()))


def dequantized_parameters(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield a model's parameters by name; for a quantized weight, yield its dequantized values."""
    quantized = {f"{name}.weight": m for name, m in model.named_modules() if isinstance(m, QuantizedLinear)}
    for name, parameter in model.named_parameters():
        yield name, quantized[name].dequantized() if name in quantized else parameter
